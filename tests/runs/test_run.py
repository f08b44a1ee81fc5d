"""A run's parameters say where its files are."""

import pytest

from gma_lib.runs.files import PROJECT
from gma_lib.runs.run import check_folder_name, data_folder, open_run

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


@pytest.mark.parametrize("name", ["../demo", "data", "a/b", "", ".", "a b", "a\n", "a" * 101])
def test_a_profile_or_run_is_a_folder_s_name(name):
    check_folder_name("openvino-float32_2.0")
    with pytest.raises(ValueError, match="folder's name"):
        check_folder_name(name)
