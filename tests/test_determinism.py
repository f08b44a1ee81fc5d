"""What `benchmarks/determinism.py` compares: arrays of one commit, with the threads it names."""

import os

import determinism
import numpy as np
import pytest

from gma_lib.runs import clusters


@pytest.mark.parametrize("place", [0, 1])
def test_a_difference_that_is_no_number_is_not_hidden(place):
    ours = [np.zeros(2), np.ones(2)]
    assert determinism.compare(ours, ours) == 0
    theirs = [np.zeros(2), np.full(2, 3.0)]
    assert determinism.compare(ours, theirs) == 2
    theirs[place] = np.array([0, np.nan])
    assert np.isnan(determinism.compare(ours, theirs))


def test_two_threads_are_two_wherever_it_runs(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {9, 4, 7})
    assert determinism.choose_cores(2) == [4, 7]
    assert determinism.choose_cores(1) == [4]
    with pytest.raises(SystemExit, match="4 cores"):
        determinism.choose_cores(4)
    first, again, one, *_ = (determinism.THREADS | it for it in determinism.SETTINGS.values())
    assert first == again == {"OMP_NUM_THREADS": "2", "CORES": "2"}
    assert one == {"OMP_NUM_THREADS": "1", "CORES": "1"}


def test_what_other_code_computed_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "two-threads"
    determinism.require_same_software(folder)  # interrupted
    monkeypatch.setattr(clusters, "describe_software", lambda: {"the code": "b"})
    determinism.require_same_software(folder)
    (folder / "computed.npz").touch()
    determinism.require_same_software(folder)
    monkeypatch.setattr(clusters, "describe_software", lambda: {"the code": "a"})
    with pytest.raises(SystemExit, match="other code"):
        determinism.require_same_software(folder)
    monkeypatch.setattr(clusters, "describe_software", lambda: {"the code": "b"})
    determinism.require_same_software(folder)
    for name in ("weights/gma-procedural.safetensors", "params/train.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("other")
    with monkeypatch.context() as patch:
        patch.setattr("gma_lib.network.WEIGHTS_FOLDER", tmp_path / "weights")
        with pytest.raises(SystemExit, match="weights"):
            determinism.require_same_software(folder)
    with monkeypatch.context() as patch:
        patch.setattr("gma_lib.runs.RESOURCES", tmp_path)
        with pytest.raises(SystemExit, match="weights"):
            determinism.require_same_software(folder)
    (folder / "software.txt").unlink()  # as older ones were left
    with pytest.raises(SystemExit, match="other code"):
        determinism.require_same_software(folder)


def test_a_setting_compiles_models_itself(tmp_path):
    """What the first setting compiled is for all instructions of this processor."""
    source, target = tmp_path / "first", tmp_path / "other"
    (source / "a/compiled/b").mkdir(parents=True)
    for name in ("a/model.xml", "a/seal.json", "a/compiled/b/model.blob"):
        (source / name).touch()
    (target / "left").mkdir(parents=True)
    determinism.share_models(source, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {"a/model.xml", "a/seal.json"}


def test_every_setting_is_compared_with_the_first_by_kind():
    """A kind that a setting could not compute is missing there, and no zero."""
    truth, frames = [np.zeros((2, 4, 5), np.float32)], [np.zeros((2, 3, 4, 5), np.uint8)]
    apart = [np.zeros((2, 4, 5), np.float32)]
    apart[0][:, 0, 0] = 3, 4  # one of 20 pixels is wrong by 5 px
    share = [np.array([[0.25, 0.5]])]
    first = {"frames": frames, "truth": truth, "torch float32": truth, "openvino int8": apart}
    found = {"a": first | {"attention, share": share}, "again": first | {"attention, share": share}}
    found["b"] = {"frames": frames, "truth": truth, "torch float32": apart}
    record = determinism.compare_settings(found)
    assert record["setting"] == "a"
    assert record["pairs"] == 1
    assert not any(record["largest_difference"]["again"].values())
    assert record["largest_difference"]["b"] == {"frames": 0, "truth": 0, "torch float32": 4}
    assert record["distance_from_torch"] == {"openvino int8": {"mean": 0.25, "max": 5}}
    moved = record["largest_difference_of_scores"]["b"]["torch float32"]
    assert moved["epe"] == pytest.approx(0.25)
    assert moved["share"] == 1
    assert set(record["largest_difference_of_scores"]["again"]) == {
        "torch float32",
        "openvino int8",
    }
