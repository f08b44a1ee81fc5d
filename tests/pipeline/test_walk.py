"""What make reproduce says of how far it is."""

import re

import pytest
import torch

from gma_lib.pipeline import walk
from gma_lib.pipeline.headlines import describe_result
from gma_lib.pipeline.settings import make_run
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import Stamp, write_stamp
from gma_lib.runs.records import write_json

INDEX = {
    "root": "/data",
    "height": 100,
    "width": 200,
    "pairs": [
        {
            "name": f"clean/alley_1/frame_{number:04d}",
            "pass_name": "clean",
            "scene": "alley_1",
            "number": number,
            "files": {"image1": "a.png", "image2": "b.png"},
            "sha256": {},
        }
        for number in range(10)
    ],
}


@pytest.fixture
def parameters(tmp_path):
    named = {"outputs": str(tmp_path), "profile": "demo", "run": "r", "backend": "openvino"}
    sizes = [named | {"batch_size": size} for size in (1, 4)]
    for one in (*sizes, sizes[0] | {"profile": "sintel"}):
        path = locate_record("01_data", make_run(one))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, INDEX)
    return sizes


def say_places(parameters, monkeypatch):
    """What each stage's line begins with."""
    places = []

    def run_stage(stage, parameters, *, place, **others):
        places.append(place)
        return "ok"

    monkeypatch.setattr(walk, "run_stage", run_stage)
    walk.run_stages(parameters, write_page=None)
    return places


def find_numbers(place):
    """Those of a line, with their unit of time."""
    return re.findall(r"\d+(?: (?:min|s)\b)?", place)


def test_a_precision_that_this_machine_lacks_is_refused_before_anything_runs(parameters):
    """PyTorch has no int8; without one, the first stage would run."""
    asked = [one | {"backend": "torch", "precision": "int8"} for one in parameters]
    with pytest.raises(ValueError, match="int8"):
        walk.run_stages(asked, write_page=None)


@pytest.mark.parametrize("backend", ["cuda", "eager_cuda"])
def test_a_gpu_that_this_machine_lacks_is_missed_before_anything_runs(
    parameters, monkeypatch, backend
):
    """What stages consumed names it; without a precision, 02_export ran."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(walk, "run_stage", lambda *_, **__: pytest.fail("ran"))
    asked = [one | {"backend": backend, "precision": None} for one in parameters]
    with pytest.raises(ValueError, match=r"PyTorch.* finds"):
        walk.run_stages(asked, write_page=None)


def test_the_demo_s_usual_time_is_said_until_its_own_is_known(parameters, monkeypatch):
    places = say_places(parameters, monkeypatch)
    assert len(places) == 13
    minutes = sum(walk.USUAL_S.values()) * 2 - walk.USUAL_S["01_data"]
    assert find_numbers(places[0]) == ["1", "13", f"{minutes / 60:.0f} min"]
    assert find_numbers(places[-1]) == ["13", "13", f"{walk.USUAL_S['06_perf']} s"]
    run = make_run(parameters[0])
    write_stamp(run, Stamp("06_perf", "ok", "", 10.0, {}, {}, {}))
    assert find_numbers(say_places(parameters, monkeypatch)[-1]) == ["13", "13", "10 s"]


def test_nothing_is_said_of_a_data_set_that_was_never_run(parameters, monkeypatch):
    sintel = [one | {"profile": "sintel"} for one in parameters]
    assert find_numbers(say_places(sintel, monkeypatch)[0]) == ["1", "13"]


def test_room_for_the_flow_of_all_batch_sizes_is_asked_for_first(parameters, monkeypatch):
    asked = []
    monkeypatch.setattr(walk, "require_free_space", lambda folder, needed: asked.append(needed))
    one = 12 + 8 * 100 * 200  # bytes of a flow file
    say_places(parameters, monkeypatch)
    subsets = {"full_batch_size": 1, "subset_pairs_per_scene": 3}
    say_places([each | subsets for each in parameters], monkeypatch)
    there = make_run(parameters[0]).flow_folder / "clean/alley_1/frame_0003.flo"
    there.parent.mkdir(parents=True)
    there.touch()
    say_places(parameters, monkeypatch)
    assert asked == [20 * one, 13 * one, 19 * one]


def test_no_room_stops_before_anything_is_computed(parameters, monkeypatch):
    huge = INDEX | {"height": 10**6, "width": 10**6}
    write_json(locate_record("01_data", make_run(parameters[0])), huge)
    with pytest.raises(OSError, match="MB are free"):
        say_places(parameters, monkeypatch)


def test_a_pair_to_look_at_is_one_of_the_data(parameters, monkeypatch):
    """Known as soon as 01_data has listed the pairs, not after hours in 07_inside."""
    known = {"look_at": INDEX["pairs"][3]["name"]}
    assert say_places([each | known for each in parameters], monkeypatch)
    other = parameters[-1] | {"look_at": "clean/alley_1/frame_0010"}
    with pytest.raises(ValueError, match=r"look_at.*0010"):
        say_places([parameters[0], other], monkeypatch)


def test_headlines_of_what_was_not_computed():
    perf = {"status": "out_of_memory", "reason": "needs 9 GB"}
    assert describe_result("06_perf", perf) == "needs 9 GB"
    assert describe_result("07_inside", {"pair": None, "reason": "no torch"}) == "no torch"
    assert describe_result("05_evaluate", {"clean": {"pairs_scored": 0}}) == "no ground truth"
    assert walk.USUAL_S.keys() == STAGES.keys()


def test_headlines_say_of_how_many_and_with_which_caution():
    """They are all that a log keeps."""
    clean = {"pairs_scored": 2, "pairs_inferred": 1041, "all": {"epe": 1.0, "px1": 0.9}}
    assert "2 of 1041 pairs" in describe_result("05_evaluate", {"clean": clean})
    inferred = {"summary": {"pairs": 3, "reused": 0}, "subset": "a declared subset: 3 of 9 pairs"}
    assert "3 of 9 pairs" in describe_result("04_infer", inferred)
    assert "9 pairs" not in describe_result("04_infer", inferred | {"subset": None})
    distances = {"together": {"max": 0.5}, "in parts": {"max": 2.25}}
    converted = {"backend": "openvino", "precision": "int8", "compared": distances}
    assert "2.2e+00 px" in describe_result("03_convert", converted | {"deviation": {"max": 0.5}})
    perf = {"pairs_per_second": 0.77, "caution": "the machine was busy"}
    assert "busy" in describe_result("06_perf", perf)
    for stage, record in (("06_perf", perf), ("05_evaluate", {"clean": clean})):
        for simulated in (True, False):
            line = describe_result(stage, record | {"simulated": simulated})
            assert line.startswith("SIMULATED") == simulated
