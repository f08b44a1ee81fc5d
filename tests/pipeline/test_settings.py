"""run.json: what 02_export records, 03 to 06 follow; what contradicts it is refused."""

import json
import shutil
import subprocess
import sys

import pytest
from command_line import gma

from gma_lib.backends import BACKENDS, find_backend
from gma_lib.pipeline.chain import read_records, write_record
from gma_lib.pipeline.parameters import SETTINGS, WrongParameters, read_parameters
from gma_lib.pipeline.settings import (
    find_contradiction,
    make_run,
    open_recorded,
    start_run,
    write_settings,
)
from gma_lib.pipeline.stamps import Stamp, find_other_data, read_statuses, write_stamp
from gma_lib.runs.files import PROJECT
from gma_lib.runs.records import write_json


@pytest.fixture
def lab(tmp_path):
    """What 03 to 06 declare, with outputs of their own: Run All after 02_export has run."""
    outputs = {"outputs": str(tmp_path)}
    run, settings = start_run(read_parameters("02_export") | outputs | {"backend": "torch"})
    write_settings(run, settings)
    return read_parameters("04_infer") | outputs


def test_later_notebooks_follow_what_02_recorded(lab):
    run, settings = open_recorded(lab)
    assert (run.backend, run.precision, settings["lookup"]) == ("torch", "float32", "matmul")
    assert run.folder == run.outputs / "demo/interactive/bs1"
    assert tuple(settings) == SETTINGS
    assert open_recorded(lab | {"backend": "torch", "at_once": 1, "something": "else"})[0] == run


@pytest.mark.parametrize(
    ("name", "here", "recorded"),
    [
        ("backend", "openvino", "torch"),
        ("precision", "bfloat16", "float32"),
        ("num_updates", 12, 6),  # not declared in 04, given to it all the same
        ("at_once", 4, 1),
        ("checkpoint", "seeded", "gma-procedural"),
    ],
)
def test_a_contradiction_names_both_and_the_notebook(lab, name, here, recorded):
    with pytest.raises(ValueError, match="02_export") as refused:
        open_recorded(lab | {name: here})
    assert f"{name} is {here!r} here, and {recorded!r}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backends_form_is_chosen_and_recorded(backend, tmp_path):
    declared = read_parameters("02_export") | {"outputs": str(tmp_path), "backend": backend}
    run, settings = start_run(declared)
    lookup = find_backend(backend).lookup
    assert settings["lookup"] == lookup
    assert settings["opset"] == (16 if "cuda" in backend else 13)
    write_settings(run, settings)
    assert find_contradiction(run, declared) is None
    assert "opset" in find_contradiction(run, declared | {"opset": 17})


def test_a_run_needs_a_name_or_a_backend(lab):
    with pytest.raises(WrongParameters, match="run is null"):
        open_recorded(lab | {"run": None})
    with pytest.raises(FileNotFoundError, match=r"torch-float32/bs1/run.json .*02_export"):
        open_recorded(lab | {"run": None, "backend": "torch"})
    chosen, _ = start_run(read_parameters("02_export") | {"run": None, "backend": "ascend"})
    assert chosen.name == "ascend-float16"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"unknown": 1},
        {"backend": "tensorrt"},
        {"num_updates": "6"},
        {"save_work": 1},
    ],
)
def test_a_damaged_record_names_the_notebook_to_run(lab, change):
    path = open_recorded(lab)[0].settings_file
    whole = json.loads(path.read_text())
    for text in (json.dumps(whole | change), "[]", "null", '{"schema": 2}', "\udcff", '{"a'):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match="02_export") as refused:
            open_recorded(lab)
        assert len(str(refused.value).splitlines()) == 1
    path.write_text(json.dumps(whole))
    assert open_recorded(lab)
    older = {name: value for name, value in whole.items() if name in SETTINGS and value is not None}
    write_json(path, older)  # of a version that did not have what may be null
    assert open_recorded(lab)
    write_json(path, {"backend": "torch"})  # whole, of a version that had other settings
    with pytest.raises(ValueError, match="another version: run 02_export again"):
        open_recorded(lab)


def test_the_export_is_of_the_recorded_settings(lab):
    """A record changed by hand, or by a 02_export that did not end, is no record of this export."""
    run, settings = open_recorded(lab)
    write_json(run.data_folder / "index.json", {"pairs": []})
    made = read_records(run, "02_export") | {"run.json": write_settings(run, settings)}
    write_record(run, "02_export", {"num_updates": 6}, made_from=made)
    assert read_records(run, "03_convert")["02_export"]["num_updates"] == 6
    write_settings(run, settings | {"precision": "bfloat16"})
    with pytest.raises(ValueError, match=r"export.json .* run.json .* run 02_export again"):
        read_records(run, "03_convert")
    run.settings_file.unlink()
    with pytest.raises(FileNotFoundError, match="02_export"):
        read_records(run, "03_convert")


def test_a_chain_of_a_version_without_an_optional_setting_holds(lab):
    """As it left it: its export was made from a record that lacks the setting."""
    run, settings = open_recorded(lab)
    write_json(run.data_folder / "index.json", {"pairs": []})
    older = {name: value for name, value in settings.items() if name != "precision_mode_v2"}
    made = read_records(run, "02_export") | {"run.json": write_settings(run, older)}
    write_record(run, "02_export", {"num_updates": 6}, made_from=made)
    assert read_records(run, "03_convert")["02_export"]["num_updates"] == 6
    assert open_recorded(lab)[1]["precision_mode_v2"] is None
    write_settings(run, settings | {"of_a_newer_version": None})
    assert open_recorded(lab)[1] == settings
    write_settings(run, settings | {"of_a_newer_version": "on"})
    with pytest.raises(ValueError, match="another version: run 02_export again"):
        open_recorded(lab)
    write_settings(run, older | {"precision_mode_v2": "mixed_float16"})
    with pytest.raises(ValueError, match="run 02_export again"):
        read_records(run, "03_convert")


def test_a_folder_of_the_checkout_s_parents_holds_no_colon(monkeypatch):
    monkeypatch.setattr("gma_lib.cli.reproduce.PROJECT", PROJECT / "a:b")
    assert "colon" in gma("reproduce", "--profile", "tiny", exit_code=2)


def test_a_copied_or_renamed_folder_is_of_another_run(lab):
    run, _ = open_recorded(lab)
    shutil.copytree(run.folder, run.folder.with_name("bs4"))
    shutil.copytree(run.folder.parent, run.folder.parent.with_name("mine"))
    shutil.copytree(run.folder.parents[1], run.outputs / "tiny")
    others = {"batch_size": 4}, {"run": "mine"}, {"profile": "tiny"}
    for other in others:
        with pytest.raises(ValueError, match="copied or renamed; run 02_export"):
            open_recorded(lab | other)
        copied = make_run(lab | {"backend": "torch"} | other)
        assert read_statuses(copied)["02_export"] is None  # as nothing there has a stamp


def test_data_that_another_run_changed_is_named(lab):
    parameters = read_parameters("01_data") | {"outputs": lab["outputs"], "demo_height": 128}
    run = make_run(read_parameters("02_export") | parameters)
    assert find_other_data(run, parameters) is None
    write_stamp(run, Stamp("01_data", "ok", "", 1.0, parameters | {"outputs": "moved"}, {}, {}))
    assert find_other_data(run, parameters) is None
    assert "demo_height = 128 by now, not 136" in find_other_data(
        run, parameters | {"demo_height": 136}
    )


def test_settings_that_another_run_changed_are_named(lab):
    parameters = read_parameters("02_export") | {"outputs": lab["outputs"], "backend": "torch"}
    run, settings = start_run(parameters)
    assert find_contradiction(run, parameters) is None
    write_settings(run, settings | {"num_updates": 3})
    assert "num_updates is 3" in find_contradiction(run, parameters)


def test_a_notebook_without_its_checks_writes_no_result(tmp_path):
    """As ``assert`` does nothing under -O and PYTHONOPTIMIZE."""
    code = (
        "import pathlib, sys; from gma_lib.pipeline.chain import write_record\n"
        "from gma_lib.runs.run import Run\n"
        "run = Run(pathlib.Path(sys.argv[1]), 'tiny', 'openvino', 'float32', 2, 'test')\n"
        "write_record(run, '06_perf', {}, made_from={})"
    )
    command = [sys.executable, "-O", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 1
    assert not list(tmp_path.rglob("*.json"))
    assert "PYTHONOPTIMIZE" in done.stderr
