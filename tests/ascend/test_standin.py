"""The stand-in for ais_bench is held to its contract."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ascend_tools import SHAPE, STANDINS, infer, list_ais_command, raw

from gma_lib.ascend import ais_bench, atc
from gma_lib.ascend.ais_bench import AisBenchError
from gma_lib.ascend.atc import AtcOptions

# The contract of the tool itself is exhaustive. In `make test` stays how it maps names, on which
# the wrapper depends.
pytestmark = pytest.mark.slow


def test_contract_names_are_cut_at_the_first_dot(om, folders, tmp_path):
    for folder in folders:
        (folder / "000000.bin").rename(folder / "a.b.bin")
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    assert (tmp_path / "out" / "bs2" / "a_0.bin").stat().st_size == 4 * 2 * 128 * 160
    with pytest.raises(ValueError, match="cuts names at the first dot"):
        infer(om, folders, tmp_path / "other" / "bs2")


@pytest.mark.exhaustive
def test_contract_the_summary_is_a_sibling_with_every_key(om, folders, tmp_path):
    raw(om, folders, tmp_path / "out" / "bs2")
    content = json.loads((tmp_path / "out" / "bs2_summary.json").read_text())
    assert {
        "filesinfo",
        "args",
        "NPU_compute_time",
        "H2D_latency",
        "D2H_latency",
        "throughput",
        "npu_compute_time_list",
        "pid",
    } <= set(content)
    assert set(content["NPU_compute_time"]) == {
        "min",
        "max",
        "mean",
        "median",
        "percentile(99%)",
        "count",
    }
    assert list(content["filesinfo"]) == ["0", "1", "2", "3", "4"]


@pytest.mark.exhaustive
def test_contract_the_last_batch_is_padded_and_cut(om, folders, tmp_path):
    """Five inputs at batch size 2 are three runs and five outputs."""
    done = raw(om, folders, tmp_path / "out" / "bs2")
    assert "runcount:3" in done.stdout
    assert len(list((tmp_path / "out" / "bs2").iterdir())) == 5


@pytest.mark.exhaustive
def test_contract_pairs_are_formed_by_position(om, folders, tmp_path):
    """A missing first file shifts every pair, exit code 0; the wrapper never
    starts.
    """
    (folders[0] / "000000.bin").unlink()
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    shifted = np.fromfile(tmp_path / "out" / "bs2" / "000001_0.bin", np.float32)
    assert shifted[0] == 0  # the second frame of pair 0
    with pytest.raises(ValueError, match="disagree"):
        infer(om, folders, tmp_path / "other" / "bs2")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("sort", "first"),
    [pytest.param("natural", "2", marks=pytest.mark.exhaustive), ("plain", "10")],
)
def test_contract_both_sort_orders(om, tmp_path, standins, sort, first):
    """Samples are numbered in the tool's order; outputs are mapped by name all the
    same.
    """
    standins.setenv("STANDIN_SORT", sort)
    folders = [tmp_path / "in" / "image1", tmp_path / "in" / "image2"]
    for folder, add in zip(folders, (0, 1), strict=True):
        folder.mkdir(parents=True)
        for number in (2, 10):
            np.full(SHAPE, add * number, np.float32).tofile(folder / f"{number}.bin")
    raw(om, folders, tmp_path / "out" / "bs2")
    content = json.loads((tmp_path / "out" / "bs2_summary.json").read_text())
    assert Path(content["filesinfo"]["0"]["infiles"][0]).stem == first
    files, _ = infer(om, folders, tmp_path / "other" / "bs2")
    assert {stem: np.fromfile(file, np.float32)[0] for stem, file in files.items()} == {
        "2": 2.0,
        "10": 10.0,
    }


@pytest.mark.exhaustive
def test_contract_exit_codes(om, folders, tmp_path):
    """Exit code 2 for a wrong flag (an empty --batchsize among them), 1 for a wrong model."""
    assert raw(om, folders, tmp_path / "out" / "bs2", "--batchsize", "").returncode == 2
    assert raw(om, folders, tmp_path / "out" / "bs2", "--outfmt", "bin").returncode == 2
    gone = raw(om.with_name("gone.om"), folders, tmp_path / "out" / "bs2")
    assert gone.returncode == 1
    assert "load model from file failed" in gone.stdout
    assert "[1][ACL: invalid parameter]" in gone.stderr


@pytest.mark.exhaustive
def test_contract_input_that_the_tool_refuses(om, folders, tmp_path):
    """A missing folder, an empty one and a file of another size: exit code 1, a RuntimeError."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for inputs, said in (
        ([folders[0], tmp_path / "none"], "is not a real dir path"),
        ([empty, empty], "not find valid file"),
    ):
        done = raw(om, inputs, tmp_path / "out" / "bs2")
        assert done.returncode == 1
        assert said in done.stdout
    (folders[0] / "000000.bin").write_bytes(b"cut off")
    done = raw(om, folders, tmp_path / "out" / "bs2")
    assert done.returncode == 1
    assert "tensorsize: 491520 filesize: 7 not match" in done.stdout


@pytest.mark.exhaustive
def test_contract_a_worker_that_died_leaves_the_others_outputs(om, folders, tmp_path, standins):
    """The tool exits with 1 and leaves files that look like a result."""
    standins.setenv("STANDIN_FAULT", "ais-worker-died")
    done = raw(om, folders, tmp_path / "out" / "bs2", "--device", "0,1")
    assert done.returncode == 1
    assert "subprocess run failed error_callback" in done.stdout
    with pytest.raises(AisBenchError, match="left 3 of 5 outputs; missing: 000003, 000004"):
        ais_bench.collect_outputs(
            tmp_path / "out" / "bs2", [f"{number:06d}" for number in range(5)], (2, 128, 160)
        )


@pytest.mark.exhaustive
def test_contract_the_cut_file_of_batch_size_one_is_found_late(standins, models, folders, tmp_path):
    """Only the C++ part notices, with outputs of the files before it left behind;
    the wrapper never starts.
    """
    one = tmp_path / "one.om"
    atc.convert_to_om(models / "GMA_m_1.onnx", one, AtcOptions("310P3"))
    (folders[1] / "000002.bin").write_bytes(b"cut")
    done = raw(one, folders, tmp_path / "out" / "bs1")
    assert done.returncode == 1
    assert "needsize:245760 not match" in done.stdout
    assert len(list((tmp_path / "out" / "bs1").iterdir())) == 2
    with pytest.raises(ValueError, match=r"000002.bin has 3 bytes"):
        infer(one, folders, tmp_path / "other" / "bs1")


@pytest.fixture(params=["T", "N"])
def generation(request, standins):
    """Either front end."""
    standins.setenv("STANDIN_GENERATION", request.param)
    return request.param


def read_times(output):
    return json.loads(Path(f"{output}_summary.json").read_text())["npu_compute_time_list"]


@pytest.mark.exhaustive
def test_contract_paths_that_are_refused(om, folders, tmp_path, generation):
    """The newer tool's argparse ends with 2 and says so, the older one with 1."""
    for inputs, model in ((folders, om.with_name("gone.om")), ([folders[0], "/none"], om)):
        done = raw(model, inputs, tmp_path / "out" / "bs2")
        assert done.returncode == {"T": 1, "N": 2}[generation]
        assert ("is illegal. Please check." in done.stderr) == (generation == "N")


@pytest.mark.exhaustive
def test_contract_times_are_numbers(om, folders, tmp_path, generation):
    """Pairs only from the newer tool, with --threads and --pipeline."""
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    assert {type(item) for item in read_times(tmp_path / "out" / "bs2")} == {float}
    if generation == "N":
        piped = ("--threads", "2", "--pipeline", "1")
        assert raw(om, folders, tmp_path / "piped" / "bs2", *piped).returncode == 0
        assert {type(item) for item in read_times(tmp_path / "piped" / "bs2")} == {list}


@pytest.mark.exhaustive
def test_contract_modes_of_what_is_written(om, folders, tmp_path, generation):
    """The newer tool also changes the mode of --output, and refuses what a group may write."""
    (tmp_path / "out").mkdir(mode=0o700)
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out" / "bs2").iterdir()}
    changed = (tmp_path / "out").stat().st_mode & 0o777
    assert (modes == {0o640}, changed == 0o750) == (generation == "N",) * 2
    folders[0].chmod(0o775)
    done = raw(om, folders, tmp_path / "again" / "bs2")
    assert done.returncode == {"T": 0, "N": 2}[generation]


@pytest.mark.exhaustive
def test_contract_pure_inference_is_one_entry(om, tmp_path, generation):
    """The file pure_infer_data_0.bin."""
    command = list_ais_command(om, "--output", str(tmp_path), "--output_dirname", "pure")
    assert subprocess.run([*command, "--loop", "3"], capture_output=True).returncode == 0
    assert [path.name for path in (tmp_path / "pure").iterdir()] == ["pure_infer_data_0.bin"]
    summary = json.loads((tmp_path / "pure_summary.json").read_text())
    assert summary["NPU_compute_time"]["count"] == 3
    assert len(summary["filesinfo"]) == 1


@pytest.mark.exhaustive
def test_contract_a_later_file_cut_short(om, folders, tmp_path, generation):
    (folders[1] / "000003.bin").write_bytes(b"cut")
    done = raw(om, folders, tmp_path / "cut" / "bs2")
    assert (done.returncode, "RuntimeError" in done.stderr) == (1, True)
    assert "[ERROR]" not in done.stdout


@pytest.mark.exhaustive
def test_contract_fewer_files_in_the_second_folder(om, folders, tmp_path, generation):
    (folders[1] / "000004.bin").unlink()
    done = raw(om, folders, tmp_path / "fewer" / "bs2")
    assert (done.returncode, list((tmp_path / "fewer").rglob("*.bin"))) == (1, [])


def test_stand_ins_import_nothing_of_the_library():
    for file in STANDINS.rglob("*"):
        if file.is_file() and file.suffix in ("", ".py"):
            assert "gma_lib" not in file.read_text()
