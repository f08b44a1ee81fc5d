"""A run's parameters are checked, and say where its files are."""

import pytest

from gma_lib.runs.files import PROJECT
from gma_lib.runs.run import data_folder, open_run

PARAMETERS = {
    "profile": "demo",
    "backend": "openvino",
    "precision": "float32",
    "batch_size": 4,
}


def test_every_run_has_its_folder():
    run = open_run(**PARAMETERS)
    assert run.folder == PROJECT / "outputs/demo/openvino-float32/bs4"
    assert (run.model_folder, run.flow_folder) == (run.folder / "model", run.folder / "flow")
    assert run.data_folder == data_folder(profile="demo") == PROJECT / "outputs/demo/data"
    assert open_run(**PARAMETERS, run="mine", outputs="outputs/lab").folder == (
        PROJECT / "outputs/lab/demo/mine/bs4"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", "4"),
        ("precision", "float64"),
        ("profile", "../demo"),
        ("run", "data"),
        ("run", "a/b"),
    ],
)
def test_other_parameters_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        open_run(**PARAMETERS | {name: value})
