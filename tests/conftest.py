"""Data that several tests share: a tiny Sintel on disk, small frames, the network with seeded
weights.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gma_lib.data.pair import FramePair
from gma_lib.data.sintel import find_pairs
from gma_lib.flow.files import write_flow
from gma_lib.flow.images import write_frame, write_mask
from gma_lib.infer.inference import StoredFlow, flow_path
from gma_lib.pipeline.stages import STAGES
from gma_lib.runs.files import PROJECT, hash_file
from gma_lib.runs.run import open_run

# A shell that starts the tests in the background ignores SIGINT, nohup ignores SIGHUP, and so would
# every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HEIGHT, WIDTH = (
    128,
    160,
)  # the smallest frames whose coarsest correlation level still has two cells a side
SHARED = Path(__file__).resolve().parents[2] / "shared"
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of reference vectors computed with the authors' implementation; not part of the
    project.
    """
    return _shared("golden")


@pytest.fixture(scope="session")
def sintel_sample() -> Path:
    """A few real Sintel frames; not part of the project."""
    return _shared("data/sintel-sample")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip("needs ../shared, which is not part of the project")
    return folder


@pytest.fixture(scope="session")
def small_golden(golden: Path) -> dict[str, np.ndarray]:
    """The reference vectors at 128x160."""
    with np.load(golden / "gma_reference_128x160.npz") as file:
        return dict(file)


@pytest.fixture
def tiny_sintel(tmp_path: Path) -> Path:
    """Two scenes of three frames in two passes; alley has flow of (3, 4) everywhere, cave has none
    for its second pair.
    """
    return write_tiny_sintel(tmp_path / "tiny-sintel")


@pytest.fixture
def pairs(tiny_sintel: Path) -> list[FramePair]:
    """The pairs of both passes of ``tiny_sintel``."""
    return [
        pair
        for pass_name in ("clean", "final")
        for pair in find_pairs(tiny_sintel, pass_name=pass_name)
    ]


def write_tiny_sintel(root: Path) -> Path:
    rng = np.random.default_rng(0)
    flow = np.zeros((2, HEIGHT, WIDTH), np.float32)
    flow[0], flow[1] = 3, 4
    occluded = np.zeros((HEIGHT, WIDTH), bool)
    occluded[:, :16] = True
    for scene, scored in (("alley", (1, 2)), ("cave", (1,))):
        for pass_name in ("clean", "final"):
            for number in (1, 2, 3):
                frame = rng.integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.float32)
                write_frame(
                    root / "training" / pass_name / scene / f"frame_{number:04d}.png", frame
                )
        for number in scored:
            write_flow(root / "training" / "flow" / scene / f"frame_{number:04d}.flo", flow)
            write_mask(
                root / "training" / "occlusions" / scene / f"frame_{number:04d}.png", occluded
            )
            write_mask(
                root / "training" / "invalid" / scene / f"frame_{number:04d}.png",
                np.zeros_like(occluded),
            )
    return root


def record_flow(pairs, folder) -> StoredFlow:
    """The flow that lies in a folder, as if inference had written it."""
    return StoredFlow(folder, {pair.name: hash_file(flow_path(folder, pair)) for pair in pairs})


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """What the library logs from INFO on. Unlike ``caplog`` it listens at the library's own logger,
    so what other libraries did to the root logger does not matter.
    """
    library, handler = logging.getLogger("gma_lib"), _Messages()
    monkeypatch.setattr(library, "handlers", [*library.handlers, handler])
    level = library.level
    library.setLevel(logging.INFO)
    yield handler.lines
    library.setLevel(level)


@pytest.fixture(scope="session")
def seeded():
    """The network with seeded weights and its checkpoint."""
    from gma_lib.network.checkpoints import load_model

    return load_model("seeded")


@pytest.fixture(scope="session")
def shallow():
    """The same with two updates, a first and a repeated one: three times as fast to export."""
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.model import GMAConfig

    return load_model("seeded", GMAConfig(num_updates=2))


@pytest.fixture(scope="session")
def small_frames() -> tuple[np.ndarray, np.ndarray]:
    """A batch of two different pairs that move by a few pixels."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (2, 3, HEIGHT // 4, WIDTH // 4)).astype(np.float32)
    image1 = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return image1, np.roll(image1, (2, 5), axis=(2, 3))


def list_command(outputs, *settings, until=None, batch_sizes=(2,)) -> list[str]:
    """The command that make runs."""
    command = [sys.executable, "-m", "gma_lib.cli", "reproduce", "--profile=tiny"]
    command += [f"--until={until}"] if until else []
    command += [f"--batch-size={size}" for size in batch_sizes]
    named = {"outputs": f"{outputs}", "run": "test"} | dict(one.split("=", 1) for one in settings)
    return command + [f"--set={name}={value}" for name, value in named.items()]


def run_stage(stage, outputs, *settings, batch_size=2):
    """A stage and those that it reads, in a process of its own."""
    command = list_command(outputs, *settings, until=stage, batch_sizes=[batch_size])
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)


def open_tiny(outputs, batch_size=2):
    """The run of that command, as in ``finished``."""
    return open_run(
        profile="tiny",
        backend="openvino",
        precision="float32",
        batch_size=batch_size,
        run="test",
        outputs=str(outputs),
    )


def copy_until(finished, outputs, stage):
    """A run as it is before this stage."""
    stages = list(STAGES)
    shutil.copytree(finished, outputs)
    for later in stages[stages.index(stage) :] if stage in stages else []:
        for path in outputs.rglob(f"*{later}*"):
            path.unlink()


# Starts the loopback interface (SIOCSIFFLAGS), then becomes the command given
_UP = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH22x', b'lo', 1)); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="session", autouse=True)
def machine_of_its_own(tmp_path_factory):
    """The lock of measurements, or workers and whoever else runs stages here would wait for each
    other.
    """
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def offline() -> list[str]:
    """What to put before a command for a network namespace with nothing but the loopback; empty
    where the system does not permit that.
    """
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", _UP]
    permitted = (
        shutil.which("unshare")
        and not subprocess.run([*command, "true"], capture_output=True).returncode
    )
    return command if permitted else []


@pytest.fixture(scope="session")
def finished(tmp_path_factory, offline):
    """All seven notebooks at two batch sizes, at a small size and without a network where that can
    be arranged: outputs folder.
    """
    outputs = tmp_path_factory.mktemp("outputs")
    command = [*offline, *list_command(outputs, batch_sizes=(2, 3))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs


@pytest.fixture(scope="session")
def reported(finished) -> Path:
    """The finished notebooks with their index page."""
    from gma_lib.report import index as report

    report.write_index(finished, "tiny")
    return finished


@pytest.fixture(scope="session")
def archive(reported) -> Path:
    """The report of the finished notebooks as one file, which tests read and leave as it is."""
    from gma_lib.report import index as report

    return report.write_archive(reported, "tiny")


SECONDS = {"slow": 3, "exhaustive": 20}  # approximate time of a test with this mark
SHARED_MODELS = {"exported", "cache_folder"}  # fixtures that make models for all files of a folder


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Say which tests share a worker where several run (``-n 2 --dist loadgroup``), those that take
    longest first, so that no worker waits for the other at the end: the tests of a file, those of a
    folder that share models, and those that read the finished run, which are slow by its making.
    """
    groups, seconds = {}, Counter()
    for item in items:
        if "finished" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        shared = any(name in item.fixturenames for name in SHARED_MODELS)
        group = f"{item.path.parent.name}/{'models' if shared else item.path.stem}"
        groups[item] = "finished" if "finished" in item.fixturenames else group
        item.add_marker(pytest.mark.xdist_group(groups[item]))
        marks = {mark.name for mark in item.iter_markers()}
        seconds[groups[item]] += sum(SECONDS.get(name, 0) for name in marks)
    items.sort(key=lambda item: -seconds[groups[item]])


def pytest_make_parametrize_id(val, argname):
    """Name long values and bytes by their length: two workers must find the same names, and an
    archive's bytes tell when it was packed.
    """
    if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 80):
        return f"{argname} of {len(val)}"
    return None


def pytest_terminal_summary(terminalreporter):
    """Where skips are counted as failures (GMA_STRICT_SKIPS), say which were not expected."""
    unexpected = _unexpected_skips(terminalreporter)
    if unexpected:
        terminalreporter.section("skipped for a reason that tests/allowed_skips.txt does not list")
        for name in unexpected:
            terminalreporter.line(name)


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and session.exitstatus == 0 and _unexpected_skips(reporter):
        session.exitstatus = 1


def _unexpected_skips(reporter) -> list[str]:
    if not os.environ.get("GMA_STRICT_SKIPS"):
        return []
    allowed = {
        line for line in ALLOWED_SKIPS.read_text().splitlines() if line and not line.startswith("#")
    }
    return sorted(
        f"{report.nodeid}: {reason}"
        for report in reporter.stats.get("skipped", [])
        if (reason := report.longrepr[2].removeprefix("Skipped: ")) not in allowed
    )
