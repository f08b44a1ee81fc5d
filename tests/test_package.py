"""The package as it is built and installed: what it holds, where it writes, and what it says where
an extra is missing.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from gma_lib.flow.images import write_frame
from gma_lib.runs.files import PROJECT
from gma_lib.runs.machine import has_bf16

pytestmark = pytest.mark.exhaustive
RESOURCES = (
    "LICENSE",
    "CITATION.cff",
    "weights",
    "expected",
    "params",
    "notebooks",
    "benchmarks/results",
    "requirements.lock",
)

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
LEFT_OUT = PYPROJECT["tool"]["uv"]["exclude-dependencies"]


def build(source: Path, what: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", what, "--directory", folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build(PROJECT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution, as pip does where there is no wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build(next(folder.iterdir()), "wheel", tmp_path_factory.mktemp("wheel"))


def find_needed(distribution, extra, found):
    """Add whatever pip would install for a distribution with this extra, by its metadata, except
    what the lock leaves out.
    """
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.name in LEFT_OUT:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for one in ("", *requirement.extras):
                if (requirement.name, one) not in found:
                    needed = found[requirement.name, one] = metadata.distribution(requirement.name)
                    find_needed(needed, one, found)
    return found


def link(distribution, site):
    """Let an environment see what is installed in this one: packages, and files of Jupyter."""
    for file in distribution.files:
        name = file if file.parts[0] == ".." else Path(file.parts[0])
        new = Path(os.path.normpath(site / name))
        if not {"bin", "__pycache__"} & {*name.parts} and not new.is_symlink():
            new.parent.mkdir(parents=True, exist_ok=True)
            new.symlink_to(os.path.normpath(distribution.locate_file(name)))


@pytest.fixture(scope="module")
def install(wheel, tmp_path_factory, offline):
    """Install the wheel with one extra into a new environment, where nothing can be imported that
    its metadata does not ask for. Returns what runs a command there, in an empty folder and with
    another home; no network is reached, with or without ``unshare``. Other packages may leave a
    pyproject.toml beside it.
    """

    def make(extra):
        place, folder = (
            tmp_path_factory.mktemp("installed"),
            tmp_path_factory.mktemp("empty folder"),
        )
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install"]
        subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True)
        site = next(place.glob("lib/python*/site-packages"))
        (site / "pyproject.toml").touch()
        own = next(metadata.distributions(name="gma-lib", path=[str(site)]))
        for one in (find_needed(own, "", {}) | find_needed(own, extra, {})).values():
            link(one, site)
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith("PYTHON")
        }
        refuses = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        environment |= refuses | {"HOME": f"{folder / 'home'}", "PYTHONDONTWRITEBYTECODE": "1"}

        def run(name, *arguments):
            command = [*offline, place / "bin" / name, *arguments]
            return subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )

        run.folder = folder
        return run

    return make


@pytest.fixture(scope="module")
def run_installed(install):
    return install("")


def test_the_wheel_holds_what_the_checkout_does(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "gma_lib", *RESOURCES],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=True,
    ).stdout.splitlines()
    with zipfile.ZipFile(wheel) as archive:
        assert "gma_lib/resources/weights/gma-procedural.safetensors" in archive.namelist()
        for name in tracked:
            bundled = name if name.startswith("gma_lib/") else f"gma_lib/resources/{name}"
            assert archive.read(bundled) == (PROJECT / name).read_bytes(), name


def test_what_git_ignores_is_in_neither(tmp_path):
    """A notebook's checkpoints hold its outputs, and so paths of the machine."""
    names = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT)
    for name in names.stdout.splitlines():
        if not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, tmp_path / name)
    ignored = [Path("notebooks/.ipynb_checkpoints/01.ipynb"), Path("params/__pycache__/a.pyc")]
    for path in ignored:
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    with zipfile.ZipFile(build(tmp_path, "wheel", tmp_path / "out")) as archive:
        held = {Path(name).name for name in archive.namelist()}
    with tarfile.open(build(tmp_path, "sdist", tmp_path / "sdist out")) as archive:
        held |= {Path(name).name for name in archive.getnames()}
    assert "demo.yaml" in held
    assert not {path.name for path in ignored} & held


def test_neither_names_the_folder_it_was_built_in(wheel, sdist):
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        contents = {name: archive.read(name) for name in archive.namelist()}
        contents |= {
            member.name: source.extractfile(member).read() for member in source if member.isfile()
        }
    built_in = str(PROJECT).encode()
    assert not [name for name, content in contents.items() if built_in in content]


def test_the_long_description_shows_and_links_to_nothing_in_this_folder(wheel, sdist):
    command = [sys.executable, "-m", "twine", "check", "--strict", wheel, sdist]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as archive:
        [about] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        shown = archive.read(about).decode()
    assert "# GMA optical flow" in shown
    assert re.findall(r"\]\((?!https:)[^)]*\)", shown) == []


def test_conda_can_install_what_its_file_lists(tmp_path):
    """conda hands the list to one call of pip, which refuses a folder beside hashes."""
    listed = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    [for_pip] = [one["pip"] for one in listed if isinstance(one, dict)]
    (tmp_path / "requirements.lock").symlink_to(PROJECT / "requirements.lock")
    (tmp_path / "requirements.txt").write_text("\n".join(for_pip))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index"]
    command = [*pip, "--no-build-isolation", "--requirement", tmp_path / "requirements.txt"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert "gma-lib" in done.stdout, done.stderr


FRAME = PROJECT / "docs" / "flow.jpg"


def test_installed_it_finds_its_resources_and_writes_here(run_installed):
    code = (
        "import gma_lib; from gma_lib.runs import files; from gma_lib.runs.run import data_folder;"
        "from gma_lib.network.checkpoints import load_checkpoint;"
        "from gma_lib.pipeline.parameters import resolve_parameters;"
        "print(files.RESOURCES, load_checkpoint('gma-procedural').name,"
        "resolve_parameters('tiny', {'batch_size': 1})['profile'], data_folder(profile='tiny'),"
        "sep='\\n')"
    )
    done = run_installed("python", "-c", code)
    resources, weights, profile, data = done.stdout.splitlines()
    assert str(PROJECT) not in resources
    assert (weights, profile) == ("gma-procedural", "tiny")
    assert Path(data) == run_installed.folder / "outputs" / "tiny" / "data"


def test_installed_it_computes_draws_and_scores(run_installed):
    """Without a network, from a home and a folder that hold nothing: the README's commands."""
    for number in (1, 2, 3):
        frame = np.random.default_rng(number).integers(0, 256, (3, 128, 160)).astype(np.float32)
        write_frame(run_installed.folder / "clip" / f"{number}.png", frame)
    pair = ("clip/1.png", "clip/2.png")
    three_lines = (
        "import cv2; frame1, frame2 = map(cv2.imread, ['clip/1.png', 'clip/2.png']);"
        "from gma_lib import load; flow = load('gma-procedural')(frame1, frame2); print(flow.shape)"
    )
    for command in (
        ("gma", "flow", *pair, "-o", "f.flo", "--figure", "f.png"),
        ("gma", "video", "clip", "-o", "flows", "--movie", "--warm"),
        ("gma", "evaluate", "f.flo", "f.flo"),
        ("python", "-c", three_lines),
    ):
        done = run_installed(*command)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 128, 160)\n"
    written = ("f.flo", "f.png", "flows/flow.mp4", "home/.cache/gma")
    assert [name for name in written if not (run_installed.folder / name).exists()] == []


def test_with_notebooks_it_reproduces(install):
    run = install("notebooks")
    done = run("gma", "reproduce", "--profile", "tiny", "--batch-size", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run.folder / "outputs" / "tiny" / "index.html").is_file()


@pytest.mark.slow
def test_a_current_folder_that_was_deleted_is_a_sentence(run_installed):
    gone = "import os, tempfile; os.chdir(tempfile.mkdtemp()); os.rmdir(os.getcwd());"
    command = "from gma_lib.cli import main; main(['evaluate', 'a.flo', 'b.flo'])"
    done = run_installed("python", "-c", gone + command)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "current folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["reproduce", "--profile", "tiny"], "notebooks"),
        pytest.param(
            *(["flow", FRAME, FRAME, "-o", "g.flo", "--precision", "int8"], "int8"),
            marks=pytest.mark.skipif(not has_bf16(), reason="needs a processor with bfloat16"),
            id="int8",
        ),
    ],
)
def test_a_missing_extra_is_named(run_installed, arguments, extra):
    done = run_installed("gma", *arguments)
    assert done.returncode == 1
    assert f"gma-lib[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
