"""The wrapper around ais_bench."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from ascend_tools import BYTES, infer, raw

from gma_lib.ascend import ais_bench, atc
from gma_lib.ascend.ais_bench import AisBench, AisBenchError
from gma_lib.ascend.atc import AtcOptions
from gma_lib.ascend.errors import explain_ais_error
from gma_lib.runs.files import BadFile
from gma_lib.runs.run import DoesNotFit

pytestmark = pytest.mark.slow
# `make test` runs one test with both generations, the others with the newer tool
EITHER_TOOL = pytest.mark.parametrize(
    "generation", [pytest.param("T", marks=pytest.mark.exhaustive), "N"]
)


def gone(process: str) -> bool:
    """A dead child that nobody has waited for yet is a zombie."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def onnx_of(om, batch):
    """The small network of another batch size, taken from the one inside a stand-in's .om."""
    model = onnx.load_from_string(om.read_bytes().split(b"\n", 2)[2])
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, om.with_name(f"m{batch}.onnx"))
    return om.with_name(f"m{batch}.onnx")


@pytest.mark.parametrize("generation", ["T", "N"])
def test_flow_of_every_pair_by_name(om, folders, tmp_path, standins, generation):
    """Outputs are matched by name."""
    standins.setenv("STANDIN_GENERATION", generation)
    files, timing = infer(om, folders, tmp_path / "out" / "bs2")
    flows = {
        stem: np.fromfile(file, np.float32).reshape(2, 128, 160) for stem, file in files.items()
    }
    assert {stem: (flow[0, 0, 0], flow[1, 5, 5]) for stem, flow in flows.items()} == {
        f"{i:06d}": (i, i + 1) for i in range(5)
    }
    assert len(timing.compute_ms) == 3
    assert timing.simulated


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("ais-half", "507011"),
        ("ais-killed", "exit code -11"),
        ("ais-other-flags", "exit code 2.*required: --om-model"),
        ("ais-no-summary", "without a summary"),
        ("ais-success-nothing", "without a summary"),
        ("ais-one-missing", "left 4 of 5 outputs; missing: 000000"),
        ("ais-nan", "not finite"),
        ("ais-short", "bytes where float32"),
    ],
)
def test_every_way_of_failing_gives_no_result(om, folders, tmp_path, standins, fault, message):
    """Success is exit code 0, a fresh summary, and every output there, whole and
    finite.
    """
    standins.setenv("STANDIN_FAULT", fault)
    with pytest.raises((AisBenchError, BadFile), match=message) as raised:
        infer(om, folders, tmp_path / "out" / "bs2")
    assert len(str(raised.value).splitlines()) == 1


def test_a_stale_summary_is_no_summary(om, folders, tmp_path, standins):
    """The summary of an earlier run survives a crash."""
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "bs2_summary.json"
    old.write_text("{}")
    os.utime(old, (1, 1))
    standins.setenv("STANDIN_FAULT", "ais-success-nothing")
    with pytest.raises(AisBenchError, match="is of an earlier run"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(om, folders, tmp_path, standins):
    """The tool runs processes of its own; none is left behind."""
    standins.setenv("STANDIN_FAULT", "ais-hangs")
    standins.setenv("STANDIN_PIDS", str(tmp_path / "pids"))
    standins.setattr(ais_bench, "TIMEOUT_S", 6)
    with pytest.raises(AisBenchError, match="did not end within 6 s") as raised:
        infer(om, folders, tmp_path / "out" / "bs2")
    assert len(str(raised.value).splitlines()) == 1
    deadline = time.monotonic() + 10  # what was killed may still need a moment on a busy machine
    for process in (tmp_path / "pids").read_text().split():
        while not gone(process):
            assert time.monotonic() < deadline, f"process {process} goes on"
            time.sleep(0.05)


def test_a_path_with_an_owner_in_it_is_not_the_cause(om, folders, tmp_path, standins):
    """The tool prints its paths; a user may be called so."""
    standins.setenv("STANDIN_FAULT", "ais-killed")
    folder = folders[0].rename(tmp_path / "an_owner")
    with pytest.raises(AisBenchError, match="exit code -11") as error:
        infer(om, (folder, *folders[1:]), tmp_path / "owner" / "bs2")
    assert "refuses the path" not in str(error.value)


def test_the_cause_that_only_the_log_has(om, folders, tmp_path, standins):
    """All failures to load share one text; the cause can stand in
    ~/ascend/log/debug/plog alone.
    """
    standins.setenv("HOME", str(tmp_path))
    standins.setenv("STANDIN_FAULT", "ais-cause-in-plog")
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(AisBenchError, match=r"made for another chip.*model socVersion=Ascend310P3"):
        infer(om, folders, tmp_path / "out" / "bs2")
    for log in tmp_path.rglob("plog-*.log"):
        os.utime(log, (1, 1))  # of an earlier run: it says nothing about this one
    standins.setenv("STANDIN_SOC", "310P3")
    standins.setenv("STANDIN_MEMORY_MB", "1000")
    with pytest.raises(DoesNotFit, match="EL0004"):
        infer(om, folders, tmp_path / "out" / "bs3")
    (tmp_path / "ascend").rename(tmp_path / "away")
    standins.setenv("HOME", "/nowhere")
    om.write_bytes(b"damaged")
    with pytest.raises(AisBenchError, match="the model was not loaded; it is damaged"):
        infer(om, folders, tmp_path / "out" / "bs4")


def test_progress_counts_outputs_as_they_appear(om, folders, tmp_path):
    seen = []

    def track(items, *, label, unit, total):
        for number in items:
            seen.append((label, unit, number, total))
            yield number

    bench = AisBench(sys.executable)
    ais_bench.infer_folders(
        bench,
        om,
        folders,
        tmp_path / "out" / "bs2",
        batch_size=2,
        output_shape=(2, 128, 160),
        input_bytes=BYTES,
        track=track,
    )
    assert seen == [("ais_bench", "pair", number, 5) for number in range(5)]


def test_rights_that_the_newer_tool_refuses(om, folders, tmp_path, standins):
    """The newer tool refuses paths that a group may write; its text becomes a sentence."""
    folders[0].chmod(0o775)
    infer(om, folders, tmp_path / "out" / "bs2")
    standins.setenv("STANDIN_GENERATION", "N")
    with pytest.raises(
        AisBenchError, match=r"refuses the path.*permission should not be over 0o755"
    ):
        infer(om, folders, tmp_path / "out" / "bs3")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, who alone can give a file away")
def test_an_owner_that_the_newer_tool_refuses(om, folders, tmp_path, standins):
    """The newer tool requires the caller to own the files."""
    os.chown(folders[0], 12345, -1)
    infer(om, folders, tmp_path / "out" / "bs2")
    standins.setenv("STANDIN_GENERATION", "N")
    with pytest.raises(AisBenchError, match=r"is not the owner"):
        infer(om, folders, tmp_path / "out" / "bs3")


def test_a_folder_with_old_results_is_refused(om, folders, tmp_path):
    """The tool never cleans its folder."""
    (tmp_path / "out" / "bs2").mkdir(parents=True)
    (tmp_path / "out" / "bs2" / "000000_0.bin").write_bytes(b"old")
    with pytest.raises(ValueError, match="not empty"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_input_folders_are_compared_before_anything_starts(om, folders, tmp_path):
    output = tmp_path / "out" / "bs2"
    with pytest.raises(ValueError, match="no such folder"):
        infer(om, [folders[0], tmp_path / "none"], output)
    (folders[1] / "000003.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"000003.bin has 3 bytes"):
        infer(om, folders, output)
    (folders[1] / "000003.bin").unlink()
    with pytest.raises(ValueError, match=r"disagree.*000003.bin"):
        infer(om, folders, output)
    (folders[1] / "000003.bin").symlink_to(folders[0] / "000003.bin")
    with pytest.raises(ValueError, match="is a link"):
        infer(om, folders, output)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"holds no \.bin"):
        infer(om, [empty, empty], output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["with space", "a=b", "ä"])
def test_paths_that_the_newer_tool_rejects(om, folders, tmp_path, name):
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(ValueError, match="is a link"):
        infer(om, [tmp_path / "link", folders[1]], tmp_path / "out" / "bs2")
    with pytest.raises(ValueError, match=r"ending in \.om"):
        infer(om.with_suffix(".bin"), folders, tmp_path / "out" / "bs2")
    with pytest.raises(ValueError, match="letters, digits"):
        infer(om, folders, tmp_path / name / "bs2")


def test_another_chip_s_model(om, folders, tmp_path, standins):
    """All failed loads print the same text; only EE1001 identifies this one."""
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(AisBenchError, match=r"made for another chip.*EE1001"):
        infer(om, folders, tmp_path / "out" / "bs2")


@EITHER_TOOL
def test_memory_that_runs_out_is_a_status(om, folders, tmp_path, standins, generation):
    """When a model is loaded (EL0004), when a buffer is allocated and when the model is executed,
    which leave outputs and no summary: the tool's own texts.
    """
    standins.setenv("STANDIN_GENERATION", generation)
    for fault, said in (("malloc", "MxbsMalloc failed"), ("run", "execute model failed")):
        standins.setenv("STANDIN_FAULT", f"ais-oom-{fault}")
        with pytest.raises(DoesNotFit, match=f"batch size 2: out of memory on the card .*{said}"):
            infer(om, folders, tmp_path / fault / "bs1")
        assert len(list((tmp_path / fault / "bs1").iterdir())) == 1
    standins.setenv("STANDIN_FAULT", "")
    standins.setenv("STANDIN_MEMORY_MB", "1000")
    with pytest.raises(DoesNotFit, match=r"batch size 2: out of memory on the card .*EL0004"):
        infer(om, folders, tmp_path / "out" / "bs2")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "[INFO] No module named 'attrs'\nRuntimeError: [9][ACL: strange]",
            "RuntimeError: [9][ACL: strange]",
        ),
        ("/usr/bin/python3: No module named ais_bench", "install ais_bench and aclruntime"),
        ("No module named 'aclruntime'", "install ais_bench and aclruntime"),
        ("No module named 'pkg_resources'\nUnboundLocalError: x", "setuptools<82"),
        ("model: /d/x y.om contains illegal char", "refuses the path"),
        (
            "ais_bench: error: argument --model: /d/m.om is illegal. Please check.",
            "refuses the path",
        ),
        ("[ERROR] path /d/m.om not exist", "refuses the path"),
    ],
)
def test_what_the_tool_says_leads_to_its_remedy(text, cause):
    assert cause in explain_ais_error(text, last=text.splitlines()[-1])


def test_a_wrong_device_and_a_python_without_the_tool(om, folders, tmp_path, standins):
    with pytest.raises(AisBenchError, match=r"npu-smi info -m.*acl open device 9"):
        infer(om, folders, tmp_path / "out" / "bs2", device=9)
    with pytest.raises(AisBenchError, match="no such interpreter"):
        infer(om, folders, tmp_path / "out" / "bs3", python="/no/python")
    standins.setenv("PYTHONPATH", "")
    with pytest.raises(AisBenchError, match=r"install ais_bench.*No module named ais_bench"):
        infer(om, folders, tmp_path / "out" / "bs4")


def _outputs(folder, values):
    folder.mkdir(parents=True)
    for stem, value in values.items():
        np.full((2, 4, 4), value, np.float32).tofile(folder / f"{stem}_0.bin")


def test_outputs_of_every_layout(tmp_path, om, folders, standins):
    """deviceN/ of the older tool splits the files, deviceN_M/ of the newer repeats
    them.
    """
    assert raw(om, folders, tmp_path / "t" / "bs2", "--device", "0,1").returncode == 0
    assert (
        len(
            ais_bench.collect_outputs(
                tmp_path / "t" / "bs2", [f"{i:06d}" for i in range(5)], (2, 128, 160)
            )
        )
        == 5
    )
    (tmp_path / "t" / "bs2" / "._device0_summary.json").write_bytes(b"of macOS")
    assert (
        ais_bench.find_summary(tmp_path / "t" / "bs2", newer_than=0).name == "device0_summary.json"
    )
    standins.setenv("STANDIN_GENERATION", "N")
    assert raw(om, folders, tmp_path / "n" / "bs2", "--device", "0,1").returncode == 0
    assert len(list((tmp_path / "n").rglob("*_0.bin"))) == 10
    assert (
        len(
            ais_bench.collect_outputs(
                tmp_path / "n" / "bs2", [f"{i:06d}" for i in range(5)], (2, 128, 160)
            )
        )
        == 5
    )
    _outputs(tmp_path / "d" / "device0_0", {"a": 1})
    _outputs(tmp_path / "d" / "device1_1", {"a": 2})
    with pytest.raises(AisBenchError, match="2 devices, which disagree"):
        ais_bench.collect_outputs(tmp_path / "d", ["a"], (2, 4, 4))


def test_outputs_that_nobody_asked_for(tmp_path):
    _outputs(tmp_path / "out", {"a": 1, "b": 2})
    with pytest.raises(AisBenchError, match="not asked for: b"):
        ais_bench.collect_outputs(tmp_path / "out", ["a"], (2, 4, 4))


@EITHER_TOOL
def test_the_loop_as_the_guide_measures(om, standins, generation):
    """Throughput is 1000 x batch size / mean time, without transfers; times of
    both generations.
    """
    standins.setenv("STANDIN_GENERATION", generation)
    standins.setenv("STANDIN_TIMES_MS", "1305,5181,11799,0")
    standins.setenv("STANDIN_MB_PER_SAMPLE", "1")
    four = om.with_name("four.om")
    atc.convert_to_om(Path(onnx_of(om, 4)), four, AtcOptions("310P3"))
    timing = ais_bench.time_on_zeros(AisBench(sys.executable), four, batch_size=4)
    assert len(timing.compute_ms) == 100
    assert timing.throughput == pytest.approx(0.772, abs=1e-3)
    assert (timing.h2d_ms, timing.d2h_ms) == (8.0, 4.0)  # two inputs of 4 ms each, one output


@pytest.mark.parametrize(("loop", "batches"), [(1, 3), (100, 1), (100, 3)])
def test_copies_are_those_of_one_call(tmp_path, loop, batches):
    """The latencies are of single copies, one per input and batch, however often the
    batch is repeated.
    """
    copies = {
        "H2D_latency": {"mean": 5.0, "count": 2 * batches},
        "D2H_latency": {"mean": 3.0, "count": batches},
    }
    content = {"npu_compute_time_list": [10.0] * loop * batches, "throughput": 100.0, **copies}
    (tmp_path / "s.json").write_text(json.dumps(content))
    timing = ais_bench.read_summary(tmp_path / "s.json", loop=loop)
    assert (timing.h2d_ms, timing.d2h_ms) == (10.0, 3.0)


def test_times_and_throughput_that_contradict_each_other(om, monkeypatch):
    """A wrong unit or batch size would silently scale the throughput."""
    content = ais_bench.Timing([10.0] * 100, 1.0, 1.0, 5.0, True)
    monkeypatch.setattr(ais_bench, "_run", lambda *arguments: None)
    monkeypatch.setattr(ais_bench, "find_summary", lambda *arguments, **more: None)
    monkeypatch.setattr(ais_bench, "read_summary", lambda path, loop: content)
    with pytest.raises(AisBenchError, match=r"10 ms.*400 ms"):
        ais_bench.time_on_zeros(AisBench(sys.executable), om, batch_size=2)


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"throughput": 1', b"\xff\xfe{}", b"null", b"[]", b"[" * 100_000),
        b'{"npu_compute_time_list": [], "throughput": 1}',
        b'{"npu_compute_time_list": [1, NaN], "throughput": 1}',
        b'{"npu_compute_time_list": [[10, 0], [1, 50]], "throughput": 1}',  # a clock set back
        b'{"npu_compute_time_list": [0, 1], "throughput": 1}',
        b'{"npu_compute_time_list": [true, 1], "throughput": 1}',
        b'{"npu_compute_time_list": [1, 2], "throughput": "1"}',
        b'{"npu_compute_time_list": [1, 2], "throughput": 0}',
        b'{"npu_compute_time_list": [1], "throughput": 1, "H2D_latency": {"mean": -3}}',
        b'{"npu_compute_time_list": [1, 2], "throughput": 1, "H2D_latency": 3}',
    ],
)
def test_a_damaged_summary(tmp_path, content):
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(BadFile, match=r"s\.json: .*; expected a summary of ais_bench"):
        ais_bench.read_summary(tmp_path / "s.json")


@pytest.mark.parametrize("count", [100, 50])
def test_a_summary_of_another_number_of_calls_is_not_used(tmp_path, count):
    """Its throughput agrees with its times, and may be another call's."""
    content = {"npu_compute_time_list": [10.0] * count, "throughput": 200.0}
    (tmp_path / "pure_summary.json").write_text(json.dumps(content))
    asked = {"newer_than": 0.0, "batch_size": 2}
    if count == 100:
        assert ais_bench.read_loop(tmp_path / "pure", **asked).compute_ms == [10.0] * 100
    else:
        with pytest.raises(AisBenchError, match=r"\b50\b.*\b100\b"):
            ais_bench.read_loop(tmp_path / "pure", **asked)
