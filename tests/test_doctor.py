"""The check of a machine: what is missing is named, with the remedy."""

import pytest
from click.testing import CliRunner

from gma_lib import doctor


@pytest.fixture
def check(monkeypatch):
    """Run the command with parts of it replaced."""

    def run(**replaced):
        for name, value in replaced.items():
            monkeypatch.setattr(doctor, name, value)
        return CliRunner().invoke(doctor.main, [])

    return run


def test_a_missing_package_is_named_before_what_needs_it(check):
    def needs_it(ais_python):
        raise ModuleNotFoundError("No module named 'absent_package'")

    done = check(NEEDED=("click", "absent_package"), _ascend=needs_it)
    word = {line[8:].split()[0]: line[:8].strip() for line in done.output.splitlines()}
    assert word["click"] == "OK"
    assert word["absent_package"] == "NOT OK"
    assert done.exit_code == 1


def test_a_machine_with_everything_passes(check):
    done = check(NEEDED=("click",), _ascend=lambda ais_python: [], _differences_from_lock=list)
    assert "NOT OK" not in done.output
    assert done.exit_code == 0


def test_a_version_that_is_not_the_locked_one_is_named(check, tmp_path):
    (tmp_path / "lock").write_text("click==0.1\nabsent-package==1.0\n")
    done = check(NEEDED=(), _ascend=lambda ais_python: [], LOCK=tmp_path / "lock")
    assert "0.1 in requirements.lock" in done.output
    assert "not installed; requirements.lock has 1.0" in done.output
    assert done.exit_code == 1
