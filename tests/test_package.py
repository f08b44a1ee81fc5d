"""The package as it is built and installed: what it holds, where it writes, and what it says where
an extra is missing.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gma_lib.doctor.checks import has_bf16
from gma_lib.flow.images import write_frame
from gma_lib.runs.files import PROJECT

pytestmark = pytest.mark.exhaustive
RESOURCES = ("weights", "params", "notebooks", "benchmarks/results", "requirements.lock")
RESOURCES += ("LICENSE", "CITATION.cff")


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


@pytest.fixture(scope="module")
def run_installed(wheel, tmp_path_factory):
    """Run Python code in an empty folder and another home, with the package imported from the
    unpacked wheel, and no network where the system can cut it off. Other packages may leave a
    pyproject.toml beside it.
    """
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty folder")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "pyproject.toml").touch()
    environment = os.environ | {"PYTHONPATH": str(site), "HOME": str(folder / "home")}
    alone = ["unshare", "--net"]
    can_cut_off = shutil.which("unshare") and not subprocess.run([*alone, "true"]).returncode

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        command = [*alone, *command] if can_cut_off else command
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    run.folder = folder
    return run


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


FRAME = PROJECT / "docs" / "flow.jpg"
GMA = "import sys; from gma_lib.cli import main; main(sys.argv[1:], prog_name='gma')"


def test_installed_it_finds_its_resources_and_writes_here(run_installed):
    code = (
        "import gma_lib; from gma_lib.runs import files; from gma_lib.runs.run import data_folder;"
        "from gma_lib.network.checkpoints import load_checkpoint;"
        "from gma_lib.pipeline.parameters import resolve_parameters;"
        "print(files.RESOURCES, load_checkpoint('gma-procedural').name,"
        "resolve_parameters('tiny', {'batch_size': 1})['profile'], data_folder(profile='tiny'),"
        "sep='\\n')"
    )
    done = run_installed(code)
    resources, weights, profile, data = done.stdout.splitlines()
    assert str(PROJECT) not in resources
    assert (weights, profile) == ("gma-procedural", "tiny")
    assert Path(data).parts[-4:] == ("empty folder0", "outputs", "tiny", "data")


def test_installed_it_computes_draws_and_scores(run_installed):
    """Without a network, from a home and a folder that hold nothing: the README's commands."""
    for number in (1, 2):
        frame = np.random.default_rng(number).integers(0, 256, (3, 128, 160)).astype(np.float32)
        write_frame(run_installed.folder / "clip" / f"{number}.png", frame)
    pair = ("clip/1.png", "clip/2.png")
    three_lines = (
        "import cv2; frame1, frame2 = map(cv2.imread, ['clip/1.png', 'clip/2.png']);"
        "from gma_lib import load; flow = load('gma-procedural')(frame1, frame2); print(flow.shape)"
    )
    for code, *arguments in (
        (GMA, "flow", *pair, "-o", "f.flo", "--figure", "f.png"),
        (GMA, "video", "clip", "-o", "flows", "--movie"),
        (GMA, "evaluate", "f.flo", "f.flo"),
        (three_lines,),
    ):
        done = run_installed(code, *arguments)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 128, 160)\n"
    written = ("f.flo", "f.png", "flows/flow.mp4", "home/.cache/gma")
    assert [name for name in written if not (run_installed.folder / name).exists()] == []


@pytest.mark.slow
def test_a_current_folder_that_was_deleted_is_a_sentence(run_installed):
    gone = "import os, tempfile; os.chdir(tempfile.mkdtemp()); os.rmdir(os.getcwd());"
    done = run_installed(gone + GMA, "evaluate", "a.flo", "b.flo")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "current folder" in done.stderr


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("papermill", ["reproduce", "--profile", "tiny"], "notebooks"),
        pytest.param(
            *("nncf", ["flow", FRAME, FRAME, "-o", "g.flo", "--precision", "int8"], "int8"),
            marks=pytest.mark.skipif(not has_bf16(), reason="needs a processor with bfloat16"),
            id="nncf",
        ),
    ],
)
def test_a_missing_extra_is_named(run_installed, absent, arguments, extra):
    done = run_installed(f"import sys; sys.modules[{absent!r}] = None; {GMA}", *arguments)
    assert done.returncode == 1
    assert f"gma-lib[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
