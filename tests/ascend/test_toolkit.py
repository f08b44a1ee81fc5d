"""CANN and the Python that has ais_bench."""

import re
import sys

import pytest

from gma_lib.ascend import toolkit
from gma_lib.doctor import checks


@pytest.mark.parametrize("place", ["cann", "ascend-toolkit", "nnrt", "nnae"])
def test_cann_in_its_old_and_new_places(tmp_path, place):
    """CANN is found by the paths of its set_env.sh."""
    (tmp_path / place / "latest").mkdir(parents=True)
    (tmp_path / place / "set_env.sh").write_text("export FROM_CANN=1\n")
    (tmp_path / place / "latest" / "version.cfg").write_text(
        "# version: 1.0\ntoolkit_running_version=[8.0.RC1:8.0.RC1]\n"
    )
    found = toolkit.find_toolkit(tmp_path, {})
    assert found.script == tmp_path / place / "set_env.sh"
    assert found.version == "8.0.RC1"
    assert toolkit.load_tool_environment(found, {"PATH": "/usr/bin:/bin"})["FROM_CANN"] == "1"


def test_no_cann_and_no_version(tmp_path):
    assert toolkit.find_toolkit(tmp_path, {}) is None
    assert toolkit.read_version(tmp_path) is None


def test_ais_bench_lives_in_another_python(standins):
    """There is no wheel for every Python."""
    assert toolkit.find_ais_python() == sys.executable
    with pytest.raises(FileNotFoundError, match="no-such-python"):
        toolkit.find_ais_python("no-such-python")
    standins.setenv("PYTHONPATH", "")
    with pytest.raises(FileNotFoundError, match="AIS_PYTHON="):
        toolkit.find_ais_python()


def test_another_project_of_the_same_name_is_not_the_tool(standins, tmp_path):
    """An evaluator of language models installs a package ais_bench; and one half alone is none."""
    (tmp_path / "ais_bench").mkdir()
    (tmp_path / "ais_bench" / "__init__.py").write_text("")
    standins.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="aclruntime"):
        toolkit.find_ais_python()
    (tmp_path / "ais_bench" / "infer.py").write_text("")
    with pytest.raises(FileNotFoundError, match="aclruntime"):
        toolkit.find_ais_python()
    (tmp_path / "aclruntime.py").write_text("")
    assert toolkit.find_ais_python() == sys.executable


@pytest.mark.slow
def test_a_setuptools_that_the_tool_does_not_run_with(standins, tmp_path):
    """The newer tool crashes without pkg_resources, the older one silently does something else."""
    tool = tmp_path / "ais_bench"
    tool.mkdir()
    for file in (tool / "__init__.py", tool / "infer.py", tmp_path / "aclruntime.py"):
        file.write_text("")
    standins.setenv("PYTHONPATH", str(tmp_path))
    found = {finding.what: finding for finding in checks.check_machine()}
    assert found["ais_bench"].word == "NOT OK"
    assert "setuptools<82" in found["ais_bench"].detail
    (tmp_path / "pkg_resources.py").write_text("")
    found = {finding.what: finding for finding in checks.check_machine()}
    assert found["ais_bench"].word == "OK"


def test_the_doctor_finds_them(standins, tmp_path):
    """CANN with its opsets, the interpreter, every chip with its logic ID and
    memory.
    """
    (tmp_path / "set_env.sh").write_text("")
    (tmp_path / "version.cfg").write_text("toolkit_running_version=[7.0.0:7.0.0]\n")
    standins.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    found = [(one.what, one.word, one.detail) for one in checks.check_machine()]
    (cann,) = (detail for what, word, detail in found if (what, word) == ("CANN", "OK"))
    assert str(tmp_path / "set_env.sh") in cann
    assert re.findall(r"[\d.]*\d", cann.rpartition("set_env.sh")[2]) == ["7.0.0", "9", "18"]
    assert ("ais_bench", "OK", sys.executable) in found
    chips = [detail for what, _, detail in found if what == "Ascend chip"]
    asked = r"Ascend310P3|\b\d+\b(?!\.)|22\.6 GB|acl\.get_soc_name"
    assert [re.findall(asked, chip) for chip in chips] == [
        ["Ascend310P3", device, "22.6 GB", "acl.get_soc_name"] for device in "01"
    ]
