"""The commands for another machine, and what comes back from it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import gma

import gma_lib
from gma_lib.ascend import dry_run
from gma_lib.ascend.ais_bench import AisBenchError
from gma_lib.ascend.atc import AtcError
from gma_lib.ascend.brought_back import read_about, read_brought_back, require_unchanged
from gma_lib.ascend.chip import Card
from gma_lib.backends.ascend import AscendOptions, open_ascend
from gma_lib.convert import convert
from gma_lib.data.guide_tensors import read_tensor
from gma_lib.data.sintel import find_pairs
from gma_lib.perf.on_device import measure_on_card
from gma_lib.runs.run import DoesNotFit

CARD = Card(soc="310P3", keep="guide")


def place_models(models, place, sizes=(1, 4)):
    for size in sizes:
        folder = place / f"bs{size}" / "model"
        folder.mkdir(parents=True)
        shutil.copyfile(models / f"GMA_m_{size}.onnx", folder / "gma.onnx")
    return {size: place / f"bs{size}" / "model" for size in sizes}


def write(models, pairs, target, card=CARD, **more):
    about = {"profile": "tiny", "parameters": {}}
    dry_run.write_folder(models, pairs, target, "float16", card, about, **more)


def list_both_passes(root):
    return [pair for name in ("clean", "final") for pair in find_pairs(root, pass_name=name)]


def run(folder):
    command = ["bash", str(folder / "run.sh")]
    return subprocess.run(command, cwd="/", capture_output=True, text=True)


def test_commands_and_files(models, tmp_path, monkeypatch):
    """What a shell would cut is quoted."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folder = place_models(models, tmp_path, [4])[4]
    target = tmp_path / "ascend"
    about = dry_run.write_commands(folder, target, "float16", CARD, ["clean"])
    assert about["command"][0] == "atc"
    script = (target / "commands_bs4.sh").read_text()
    # the ';' is quoted, or a shell would cut the command there (E10054)
    assert "'--input_shape=image1:4,3,128,160;image2:4,3,128,160'" in script
    assert "output_final" not in script
    assert (target / "keep_bs4.cfg").read_text() == "OpType::InstanceNorm\n"
    assert "# no rewrite needed" in script
    assert "# CANN 6.0: refused: nothing; unknown: nothing" in script


def test_shellcheck_finds_nothing(models, tiny_sintel, tmp_path):
    write(place_models(models, tmp_path), list_both_passes(tiny_sintel), tmp_path / "p")
    scripts = sorted(map(str, (tmp_path / "p").glob("*.sh")))
    assert len(scripts) == 3
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_dry_run_too_early(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_export first"):
        dry_run.write_commands(tmp_path, tmp_path / "ascend", "float16", CARD, ["clean"])


def test_a_batch_size_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "run.sh").write_text(dry_run.RUN.format(sizes="1 4"))
    for size, code in ((1, "exit 3"), (4, "touch four")):
        (tmp_path / f"commands_bs{size}.sh").write_text(code + "\n")
    assert run(tmp_path).returncode == 1
    assert (tmp_path / "four").exists()


# --- on another machine ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    """A folder after its run, elsewhere than where it was written; its models and pairs stay."""
    from conftest import write_tiny_sintel

    place = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch:
        from ascend_tools import set_standins

        set_standins(patch)
        patch.setenv("AIS_PYTHON", sys.executable)
        patch.setenv("DEVICE", "1")
        patch.setenv("ASCEND_TOOLKIT_HOME", str(place))
        version = place / "version.info"  # of the first run; the second is with another CANN
        version.write_text("Version=7.0.0\n")
        made_of = place_models(models, place)
        pairs = list_both_passes(write_tiny_sintel(place / "sintel"))
        coordinates = Card(soc="310P3", keep="coordinates")
        write(made_of, pairs, place / "here", coordinates, plain_names=True)
        write(made_of, pairs, place / "here", CARD)  # another keep list, other names
        shutil.copytree(place / "here", place / "there")
        for _ in range(2):
            done = run(place / "there")
            assert done.returncode == 0, done.stdout + done.stderr
            version.unlink(missing_ok=True)
            (place / "version.cfg").write_text("toolkit_running_version=[9.2.0:9.2.0]\n")
    return place / "there", made_of, pairs


@pytest.fixture
def back(ran, tmp_path):
    return Path(shutil.copytree(ran[0], tmp_path / "back"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_what_came_back_is_what_a_card_here_would_give(ran, size, tmp_path):
    """Flow of every pair by the frames themselves, times, manifest; nothing but outputs and
    summaries had to come back.
    """
    folder, models, pairs = ran
    for name in ("tensors", f"GMA_bs{size}.om", f"GMA_m_{size}.onnx"):
        assert (folder / name).exists()
    shutil.copytree(
        folder, tmp_path / "back", ignore=lambda *_: ["tensors", "GMA_bs1.om", "GMA_bs4.om"]
    )
    card = Card(dry_run=str(tmp_path / "back"))
    made = convert("ascend", models[size], checkpoint="seeded", precision="float16", card=card)
    assert made.changes.startswith("SIMULATED")
    with open_ascend(models[size] / "gma.om", AscendOptions("float16", card)) as backend:
        assert backend.device == "Ascend310P3 (SIMULATED)"
        assert backend.manifest["cann"] == "9.2.0"
        weights = (folder / f"GMA_m_{size}.onnx").stat().st_size
        assert backend.manifest["memory_bytes"] == size * 1400 * 2**20 + weights
        frames = np.stack([np.stack(pair.load_frames()) for pair in pairs[:3]])
        flow = backend.predict(frames[:, 0], frames[:, 1])
        np.testing.assert_array_equal(flow, (frames[:, 1] - frames[:, 0])[:, :2])
        with pytest.raises(ValueError, match="no flow of these frames"):
            backend.predict(frames[:1, 1], frames[:1, 0])
    perf = measure_on_card(models[size], "float16", size, card)
    assert (perf["status"], perf["simulated"], perf["rounds"]) == ("ok", True, 100)
    assert perf["pairs_per_second"] == pytest.approx({1: 0.766, 4: 0.772}[size], abs=1e-3)
    summary = json.loads((folder / f"measured/bs{size}_summary.json").read_text())
    assert "'--device', '1'" in str(summary["args"])


def remove(folder):
    next((folder / "output_clean" / "bs4").iterdir()).unlink()


def double(folder):
    file = next((folder / "output_clean" / "bs4").iterdir())
    (file.parent / "device0").mkdir()
    shutil.copyfile(file, file.parent / "device0" / file.name)


def swap_passes(folder):
    (folder / "output_clean").rename(folder / "x")
    (folder / "output_final").rename(folder / "output_clean")
    (folder / "x").rename(folder / "output_final")


def take_another_batch_size(folder):
    for place in ("output_clean", "output_final", "measured"):
        shutil.rmtree(folder / place / "bs4")
        shutil.copytree(folder / place / "bs1", folder / place / "bs4")
        shutil.copyfile(folder / place / "bs1_summary.json", folder / place / "bs4_summary.json")
    shutil.copyfile(folder / "measured" / "bs1.sha256", folder / "measured" / "bs4.sha256")


def change_summary(folder):
    file = folder / "measured" / "bs4_summary.json"
    file.write_text(file.read_text().replace("throughput", "Throughput"))


def change_memory(folder):
    file = folder / "measured" / "bs4_cann" / "memory.txt"
    file.write_text(file.read_text().replace("memory_size[", "memory_size[1"))


def take_another_memory(folder):
    for name in ("bs4_cann", "bs4.log"):
        there = folder / "measured" / name
        copy = shutil.copytree if there.is_dir() else shutil.copyfile
        more = {"dirs_exist_ok": True} if there.is_dir() else {}
        copy(folder / "measured" / name.replace("bs4", "bs1"), there, **more)


def lose_memory(folder):
    (folder / "measured" / "bs4_cann" / "memory.txt").unlink()


def change_version(folder):
    (folder / "measured" / "bs4_cann" / "version.cfg").write_text("version=[8.0.RC1]\n")


def add_version(folder):
    (folder / "measured" / "bs4_cann" / "version.info").write_text("Version=8.0.RC1\n")


def be_of_an_older_run(folder):
    """Which left the memory in the log only, and the version in ``measured``."""
    done = folder / "measured" / "bs4.sha256"
    lines = done.read_text().splitlines(keepends=True)
    done.write_text("".join(line for line in lines if "bs4_cann" not in line))
    (folder / "measured" / "bs4_cann" / "version.cfg").rename(folder / "measured" / "version.cfg")
    shutil.rmtree(folder / "measured" / "bs4_cann")


def bring_nothing(folder):
    shutil.rmtree(folder / "measured")


def cut_the_list(folder):
    done = folder / "measured" / "bs4.sha256"
    done.write_bytes(done.read_bytes()[:-30])


def be_of_another_version(folder):
    from gma_lib.runs.records import write_json

    about = read_about(folder)
    about["provenance"]["package"] = "0.0.9"
    write_json(folder / "dry_run.json", about)


def be_of_an_older_commit(folder):
    """Which did not say yet what is kept in float32."""
    from gma_lib.runs.records import write_json

    about = read_about(folder)
    for size in about["sizes"].values():
        del size["keep"]
    write_json(folder / "dry_run.json", about)


def change_the_list(folder):
    (folder / "sent.sha256").write_text((folder / "sent.sha256").read_text() + "\n")


def require_refused(folder, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_brought_back(folder, 4)
    told = gma("ascend", "collect", folder, "--outputs", folder.parent / "o", exit_code=1)
    assert len(told.splitlines()) == 1
    assert not (folder.parent / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove, "1 missing, such as output_clean/bs4/"),
        (double, "1 not of this run, such as output_clean/bs4/device0/"),
        (swap_passes, "changed, such as output_clean/bs4/"),
        (take_another_batch_size, "of another dry run or batch size"),
        (change_summary, "1 changed, such as measured/bs4_summary.json"),
        (change_memory, "1 changed, such as measured/bs4_cann/memory.txt. Run run.sh there"),
        (take_another_memory, "1 changed, such as measured/bs4_cann/memory.txt. Run run.sh there"),
        (lose_memory, "1 missing, such as measured/bs4_cann/memory.txt. Run run.sh there"),
        (change_version, "1 changed, such as measured/bs4_cann/version.cfg"),
        (add_version, "1 not of this run, such as measured/bs4_cann/version.info"),
        (be_of_an_older_run, "bs4.sha256 does not list measured/bs4_cann/memory.txt, as an older"),
        (bring_nothing, "has no results of batch size 4"),
        (cut_the_list, "no checksums"),
        (be_of_another_version, "was made by version 0.0.9"),
        (be_of_an_older_commit, "of an older version"),
        (change_the_list, "sent.sha256 has changed"),
    ],
)
def test_what_is_not_what_the_run_left_is_refused(back, spoil, said):
    (back / "output_clean" / "bs4" / "._0_0.bin").write_bytes(b"of macOS")
    read_brought_back(back, 4)
    spoil(back)
    require_refused(back, said)


@pytest.mark.slow
def test_what_another_dry_run_left_is_refused(ran, back):
    """Of other frames, another chip or another model: what was sent is another list."""
    write(ran[1], ran[2], back, Card(soc="310P1", keep="guide"))
    require_refused(back, "of another dry run or batch size")


@pytest.mark.slow
def test_tensors_that_changed_are_found_there_and_here(back, standins):
    require_unchanged(back)
    tensor = back / "tensors" / "final" / "image2" / "1.bin"
    read_tensor(tensor, (1, 3, 128, 160)).tofile(tensor)
    require_unchanged(back)  # the same content
    np.zeros((1, 3, 128, 160), np.float32).tofile(tensor)
    with pytest.raises(ValueError, match=r"final/image2/1.bin is not what the dry run wrote"):
        require_unchanged(back)
    assert run(back).returncode == 1
    with pytest.raises(ValueError, match="had changed on the other machine"):
        read_brought_back(back, 1)
    assert "final/image2/1.bin" in (back / "measured" / "bs1.log").read_text()
    assert "is not what the dry run wrote" in gma("ascend", "collect", back, exit_code=1)


@pytest.mark.slow
def test_another_export_than_the_one_here(ran, back, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    model = onnx.load(ran[1][4] / "gma.onnx")
    model.doc_string = "another one"
    onnx.save(model, folder / "gma.onnx")
    card = Card(dry_run=str(back))
    with pytest.raises(ValueError, match=r"from another gma.onnx"):
        convert("ascend", folder, checkpoint="seeded", precision="float16", card=card)
    assert not list(folder.glob("*.json"))
    with pytest.raises(ValueError, match="for batch size 1, 4, not 16"):
        read_brought_back(back, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("soc", "910B3"), ("keep", "coordinates"), ("precision_mode_v2", "fp16")],
)
def test_another_card_than_the_settings_name(ran, back, name, value):
    """The records would say that the model was made so."""
    card = replace(Card(soc="310P3", dry_run=str(back)), **{name: value})
    with pytest.raises(ValueError, match=rf"^{name} is .*{value} in 02_export"):
        convert("ascend", ran[1][4], checkpoint="seeded", precision="float16", card=card)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "memory", "kind", "said"),
    [
        ("", "3000", DoesNotFit, "out of memory on the card .*EL0004"),
        ("ais-cause-in-plog", "3000", DoesNotFit, "out of memory on the card .*EL0004"),
        ("ais-oom-run", "21534", DoesNotFit, "out of memory on the card"),
        ("atc-code:E19010: No parser", "21534", AtcError, "has no parser in this CANN"),
        ("atc-no-file", "21534", AisBenchError, "on the other machine"),
        ("ais-half", "21534", AisBenchError, "the model failed while it ran"),
    ],
)
def test_a_batch_size_that_failed_there(ran, back, standins, tmp_path, fault, memory, kind, said):
    """As if it had failed here; and nothing of the run before counts any more."""
    standins.setenv("AIS_PYTHON", sys.executable)
    standins.setenv("STANDIN_MEMORY_MB", memory)
    standins.setenv("STANDIN_FAULT", fault)
    standins.setenv("HOME", str(tmp_path))
    (back / "run.sh").write_text(dry_run.RUN.format(sizes="4"))
    assert run(back).returncode == 1
    with pytest.raises(kind, match=said):
        read_brought_back(back, 4)
    if kind is DoesNotFit:
        perf = measure_on_card(ran[1][4], "float16", 4, Card(dry_run=str(back)))
        assert (perf["status"], perf["simulated"]) == ("out_of_memory", True)


@pytest.mark.slow
def test_a_log_is_read_only_of_a_failure_and_as_it_was_left(ran, back, standins):
    """Memory and status came from whatever the log said."""
    log = back / "measured" / "bs4.log"
    before = read_brought_back(back, 4).manifest
    log.write_text("memory_size[1 B]")
    assert read_brought_back(back, 4).manifest == before
    assert measure_on_card(ran[1][4], "float16", 4, Card(dry_run=str(back)))["simulated"]
    log.unlink()
    assert read_brought_back(back, 4).manifest == before
    standins.setenv("AIS_PYTHON", sys.executable)
    standins.setenv("STANDIN_MEMORY_MB", "1000")
    assert run(back).returncode == 1
    with pytest.raises(DoesNotFit, match="batch size 1"):
        read_brought_back(back, 1)
    other = log.read_bytes()
    log.write_text("atc run success")
    with pytest.raises(ValueError, match=r"bs4\.log has changed, or is of another .*Run run\.sh"):
        read_brought_back(back, 4)
    log.write_bytes(other)
    shutil.copyfile(back / "measured" / "bs1.log.sha256", back / "measured" / "bs4.log.sha256")
    with pytest.raises(ValueError, match=r"bs4\.log has changed, or is of another"):
        read_brought_back(back, 4)
    (back / "measured" / "bs4.log.sha256").unlink()
    with pytest.raises(FileNotFoundError, match=r"bs4\.log\.sha256 is missing: run\.sh did not"):
        read_brought_back(back, 4)


def test_the_version_is_that_of_this_package(ran):
    assert read_about(ran[0])["provenance"]["package"] == gma_lib.__version__
