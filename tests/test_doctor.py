"""The check of a machine: what is missing is named, with the remedy."""

import http.client
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import gma

from gma_lib.doctor import checks, installation
from gma_lib.runs.files import PROJECT


@pytest.fixture
def check(monkeypatch):
    """Run the command with parts of it replaced; returns word and detail of each line by what
    it is about.
    """

    def run(exit_code=0, **replaced):
        for name, value in replaced.items():
            monkeypatch.setattr(checks, name, value)
        return read(gma("doctor", exit_code=exit_code))

    monkeypatch.setattr(checks, "_ascend", lambda ais_python: [])
    monkeypatch.setattr(checks, "NEEDED", ("click",))
    monkeypatch.setattr(checks, "LOCK", PROJECT / "no such file")
    alone = [place for place in sys.path if not Path(place, "gma_lib/__init__.py").is_file()]
    monkeypatch.setattr(sys, "path", [*alone, str(PROJECT)])  # a worktree has another copy
    return run


def read(output):
    lines = output.splitlines()
    return {line[8:33].strip(): (line[:8].strip(), line[33:]) for line in lines}


def test_a_missing_package_is_named_before_what_needs_it(check):
    def needs_it(ais_python):
        raise ModuleNotFoundError("No module named 'absent_package'")

    found = check(exit_code=1, NEEDED=("click", "absent_package"), _ascend=needs_it)
    assert found["click"][0] == "OK"
    assert found["absent_package"][0] == "NOT OK"


def test_a_package_that_cannot_be_loaded_is_named_and_the_rest_checked(check, monkeypatch):
    """PyTorch raises OSError where a library of CUDA is missing."""
    real = importlib.import_module

    def load(name):
        if name == "broken":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(checks.importlib, "import_module", load)
    found = check(exit_code=1, NEEDED=("broken", "click"))
    assert found["broken"][0] == "NOT OK"
    assert found["click"][0] == "OK"


def test_a_machine_with_everything_passes(check):
    words = {word for word, _ in check().values()}
    assert "OK" in words
    assert "NOT OK" not in words


def test_what_only_notebooks_need_may_be_absent(check):
    word, detail = check(FOR_NOTEBOOKS=("absent_package",))["absent_package"]
    assert word == "absent"
    assert "gma-lib[notebooks]" in detail


def test_a_version_that_is_not_the_locked_one_is_named(check, tmp_path, monkeypatch):
    (tmp_path / "broken_package-1.0.dist-info").mkdir()  # as an interrupted installation leaves it
    monkeypatch.syspath_prepend(tmp_path)
    lock = tmp_path / "lock"
    lock.write_text(
        "# of a tool\nclick==0.1 \\\n    --hash=sha256:1\nabsent-package==1.0\n"
        "broken-package==1.0\n"
        f"pytest=={pytest.__version__}\nabsent-there==1.0 ; sys_platform == 'none'\n"
    )
    found = check(exit_code=1, LOCK=lock)
    assert found["click"][0] == "differs"
    assert "==0.1 in requirements.lock" in found["click"][1]
    assert found["absent-package"][0] == found["broken-package"][0] == "NOT OK"
    assert not {"pytest", "absent-there"} & set(found)


def test_two_copies_on_one_path_are_named(check, tmp_path, monkeypatch):
    """As a wheel and a checkout, whose versions are equal; one copy named twice is one."""
    assert "gma-lib" not in check(NEEDED=())
    (tmp_path / "site" / "gma_lib").mkdir(parents=True)
    (tmp_path / "site" / "gma_lib" / "__init__.py").touch()
    (tmp_path / "link").symlink_to(PROJECT)
    monkeypatch.syspath_prepend(tmp_path / "link")
    assert "gma-lib" not in check(NEEDED=())
    monkeypatch.syspath_prepend(tmp_path / "site")
    word, detail = check(exit_code=1, NEEDED=())["gma-lib"]
    assert word == "NOT OK"
    assert str(tmp_path / "site") in detail
    assert str(PROJECT) in detail


def before_installation(**environment):
    """The check that needs no installation: without site-packages, in a folder of another user."""
    command = [sys.executable, "-S", PROJECT / "gma_lib/doctor/installation.py"]
    own = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        command, cwd="/", env=own | environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.returncode, read(done.stdout)


def test_before_an_installation_a_proxy_that_refuses_is_named():
    refuses = "http://127.0.0.1:9"
    nowhere = {"PIP_INDEX_URL": f"{refuses}/simple", "PIP_CONFIG_FILE": os.devnull}
    code, found = before_installation(HTTPS_PROXY=refuses, https_proxy=refuses, **nowhere)
    assert code == 1
    assert found["Python"][0] == "OK"
    assert found["package index"][0] == "NOT OK"
    assert found["PyTorch's wheels"][0] == "absent"
    assert found["compiler"][0] == "OK"


@pytest.mark.parametrize(
    ("index", "reachable", "needed"),
    [
        (installation.CPU_WHEELS, True, installation.SPACE),
        (installation.CPU_WHEELS, False, installation.SPACE),  # pip may reach them
        ("", True, installation.SPACE_WITH_CUDA),
    ],
)
def test_the_disk_must_hold_what_will_be_installed(monkeypatch, index, reachable, needed):
    def open_page(*_, **__):
        if not reachable:
            raise OSError("refused")
        return io.BytesIO()

    monkeypatch.setattr(installation.urllib.request, "urlopen", open_page)
    monkeypatch.setattr(installation.sys, "platform", "linux")
    for name in ("_venv", "_index"):
        monkeypatch.setattr(installation, name, lambda: installation.Finding("OK", "", ""))
    for free, word in ((needed - 0.5, "NOT OK"), (needed + 0.5, "OK")):
        disk = SimpleNamespace(free=free * 1e9)
        monkeypatch.setattr(installation.shutil, "disk_usage", lambda _, disk=disk: disk)
        found = {one.what: one.word for one in installation.check_installation(index)}
        assert found["free disk"] == word


@pytest.mark.parametrize("trouble", [OSError("no"), http.client.BadStatusLine("?")])
def test_an_index_that_does_not_answer_is_absent_and_its_password_stays(monkeypatch, trouble):
    def open_page(address, **_):
        assert "secret" not in address
        raise trouble

    monkeypatch.setattr(installation.urllib.request, "urlopen", open_page)
    monkeypatch.setattr(installation, "_index", lambda: installation.Finding("OK", "", ""))
    found = list(installation.check_installation("https://me:secret@localhost/whl/cpu"))
    assert {one.what: one.word for one in found}["PyTorch's wheels"] == "absent"
    assert not any("secret" in one.detail for one in found)


def test_the_pages_say_how_much_disk_it_takes():
    pages = [(PROJECT / page).read_text() for page in ("README.md", "docs/get-started.md")]
    assert all(f" {installation.SPACE} GB of disk" in page for page in pages)
    assert f"({installation.SPACE_WITH_CUDA} GB with an NVIDIA GPU)" in pages[1]
