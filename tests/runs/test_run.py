"""A run's parameters say where its files are."""

import pytest

from gma_lib.runs.files import PROJECT
from gma_lib.runs.run import check_folder_name, data_folder, list_batch_sizes, open_run

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


NO_NAMES = ["../demo", "data", "DATA", "index.html", "a/b", "", ".", "a b", "a\n", "a" * 101]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_profile_or_run_is_a_folder_s_name(name):
    check_folder_name("openvino-float32_2.0")
    with pytest.raises(ValueError, match="folder's name"):
        check_folder_name(name)


def test_batch_sizes_are_folders_as_this_package_names_them(tmp_path):
    for name in ("bs4", "bs16", "bs1", "bs1.bak", "bs1 (copy)", "bs01", "bs\u00b2", "bs0", "b1"):
        (tmp_path / name).mkdir()
    assert list_batch_sizes(tmp_path) == [1, 4, 16]
