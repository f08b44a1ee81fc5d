"""The notebooks as users run them: from frames to pages, skipped when up to date, honest when they
fail.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from command_line import gma
from conftest import copy_until, list_command, run_stage
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from gma_lib.pipeline import runner
from gma_lib.pipeline.parameters import read_parameters, resolve_parameters
from gma_lib.pipeline.settings import start_run, write_settings
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import Stamp, locate_stamp, write_stamp
from gma_lib.report import index as report
from gma_lib.runs import progress
from gma_lib.runs.files import PROJECT
from gma_lib.runs.machine import locate_machine_lock
from gma_lib.runs.records import write_json
from gma_lib.runs.run import Run


def content(path):
    return json.loads(Path(path).read_text())


def test_every_stage_leaves_its_page_and_its_stamp(finished):
    for stage in STAGES:
        folder = finished / "tiny" / ("data" if stage == "01_data" else "test/bs2")
        stamp = content(folder / f".{stage}.json")
        assert stamp["status"] == "ok"
        assert stamp["provenance"]["versions"]["torch"] == version("torch")
        notebook = content(folder / f"{stage}.ipynb")
        counts = [
            cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"
        ]
        assert counts == list(range(1, len(counts) + 1))
        assert (folder / f"{stage}.ipynb").stat().st_size < 5e6
        assert str(PROJECT) not in json.dumps(notebook["metadata"])
        assert "widgets" not in notebook["metadata"]
        assert not list(folder.glob("*.running.ipynb"))
        assert not list(folder.glob("*.failed.ipynb"))


def test_a_stage_counts_its_seconds_in_a_terminal(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path, "tiny", "openvino", "float32", 2, "test")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_COUNTS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(runner, "_run_notebook", lambda *_: time.sleep(0.3) or ("failed", ""))
    runner._publish(runner.Job("01_data", run, {}, limit_s=1, cell_limit_s=1), lambda *_, **__: 0)
    assert "01_data: 0 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("01_data", set()),
        (
            "05_evaluate",
            {"overview.jpg", "overview-narrow.jpg", "viewer.html", "viewer/1.js"},
        ),
        ("07_inside", {"updates.html"}),
    ],
)
def test_pictures_of_earlier_data_do_not_stay(tmp_path, monkeypatch, stage, gone):
    """A run without ground truth writes none; rendered frames are taken over."""
    run = Run(tmp_path, "tiny", "openvino", "float32", 2, "test")
    names = ["overview.jpg", "overview-narrow.jpg", "viewer.html", "viewer/1.js"]
    names += ["updates.html", "frames/a/b/c/d.png"]
    paths = {name: (run.data_folder if "png" in name else run.folder) / name for name in names}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(runner, "_run_notebook", lambda job, running: ("failed", ""))
    runner._publish(runner.Job(stage, run, {}, limit_s=1, cell_limit_s=1), lambda *_, **__: None)
    assert {name for name, path in paths.items() if not path.exists()} == gone


def test_pages_need_no_network_and_describe_their_pictures(finished):
    for page in finished.rglob("*.html"):
        text = page.read_text()
        assert "<script src=" not in text, page
        assert 'src="http' not in text, page
        assert 'href="http' not in text.split("<body")[0], page
        assert 'alt="picture"' not in text, page
        assert "No description has been provided" not in text, page


def test_metrics_hold_what_was_scored(finished):
    metrics = content(finished / "tiny/test/bs3/metrics.json")
    assert metrics["schema"] == 3
    for pass_name in ("clean", "final"):
        scores = metrics[pass_name]
        assert (scores["pairs_inferred"], scores["pairs_scored"], scores["pixels"]) == (
            4,
            4,
            4 * 128 * 160,
        )
        assert set(scores["scenes"]) == {"drift", "rush"}
        assert scores["all"]["epe"] > 0
        assert {
            "valid",
            "occluded",
            "non_occluded",
            "in_frame_occluded",
            "out_of_frame",
            "s0_10",
            "s10_40",
            "s40_plus",
        } <= set(scores)
    assert metrics["agreement"]["bs2"]["max"] < 1e-3
    assert "No verdict" in metrics["verdict"]


def test_perf_holds_what_was_measured(finished):
    perf = content(finished / "tiny/test/bs2/perf.json")
    assert (perf["status"], perf["batch_size"], perf["precision"], perf["simulated"]) == (
        "ok",
        2,
        "float32",
        False,
    )
    assert {
        "median_s",
        "p90_s",
        "rounds",
        "pairs_per_second",
        "peak_rss_bytes",
        "share_of_peak",
        "load_s",
    } <= set(perf)


def test_the_last_batch_is_filled_and_cut(finished):
    assert (
        content(finished / "tiny/test/bs3/infer.json")["summary"]["filled"] == 4
    )  # 8 pairs, 2 of each scene, in batches of 3
    assert len(list((finished / "tiny/test/bs3/flow").rglob("frame_*.flo"))) == 8


def test_noise_is_called_noise(finished):
    for page in ("02_export", "05_evaluate"):
        assert "seeded noise" in (finished / f"tiny/test/bs2/{page}.html").read_text()


@pytest.mark.exhaustive
def test_plain_papermill(finished, tmp_path):
    """Without the runner: the same notebook, the same files."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/05_evaluate.ipynb",
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
    ]
    command += [
        "-f",
        "params/common.yaml",
        "-f",
        "params/tiny.yaml",
        "-p",
        "outputs",
        str(finished),
        "-p",
        "run",
        "test",
    ]
    done = subprocess.run(
        [*command, "-p", "batch_size", "2"], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out.ipynb")["cells"]
    assert "05_evaluate bs2: up to date" in run_stage("05_evaluate", finished).stdout


def test_the_index_shows_all_of_it(finished):
    page = report.write_index(finished, "tiny").read_text()
    assert page.count("✓ done") == 2 * len(STAGES)
    assert "92.65" in page
    assert "0.766" in page
    assert "out of memory" in page  # the guide's batch size 16
    assert "test/bs3/05_evaluate.html" in page
    assert 'scope="col"' in page


def test_the_report_as_one_file_has_all_that_it_links_to(archive):
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
        page = content.read("tiny/index.html").decode()
    linked = set(re.findall(r'(?:href|src|srcset)="(?!data:|#)([^"]+)"', page))
    assert {"test/bs2/overview.jpg", "test/bs2/overview-narrow.jpg"} <= linked
    assert len(linked) >= 2 * 11  # pages and notebooks of five stages at two batch sizes, and of 01
    assert {f"tiny/{link}" for link in linked} <= names
    assert not [name for name in names if name.endswith((".onnx", ".flo", ".png", ".xml", ".bin"))]


@pytest.mark.exhaustive
def test_frames_on_disk(tiny_sintel, tmp_path):
    """A data set in Sintel's layout, with the guide's tensors beside the index, in folders whose
    names mean something to shells, YAML, HTML and papermill.
    """
    outputs, root = tmp_path / "out $HOME {x} 'q' 😀", tmp_path / 'null "#" <b>'
    tiny_sintel.rename(root)
    done = run_stage("01_data", outputs, f"sintel_root={root}", "tensors=true")
    assert done.returncode == 0, done.stdout
    assert "8 pairs, 6 with ground truth" in done.stdout
    folder = outputs / "tiny/data"
    assert (
        content(folder / "index.json")["description"]
        == "MPI-Sintel, training split, as found on disk"
    )
    assert len(list(folder.glob("tensors/*/image1/*.bin"))) == 8


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("01_data", ["sintel_root=notebooks"], "holds no 'training' folder"),
        ("02_export", ["checkpoint=pyproject.toml"], "pyproject.toml"),
    ],
)
def test_a_failed_notebook_keeps_its_reason_and_leaves_no_result(
    finished, tmp_path, stage, settings, message
):
    """Nothing that reads it is started."""
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, stage)
    done = run_stage("03_convert", outputs, *settings)
    assert done.returncode == 1
    assert message in done.stdout
    assert "03_convert bs2: not started" in done.stdout
    folder = outputs / "tiny" / ("data" if stage == "01_data" else "test/bs2")
    assert content(folder / f".{stage}.json")["status"] == "failed"
    assert message in content(folder / f"{stage}.failed.ipynb")["metadata"]["gma"]["reason"]
    assert not (folder / f"{stage}.ipynb").exists()
    assert not (folder / f"{stage}.html").exists()
    assert not list(outputs.rglob("03_convert*"))


@pytest.mark.exhaustive
def test_a_dead_kernel_is_no_success(finished, tmp_path):
    """papermill would leave a notebook that looks complete."""
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, "04_infer")
    command = list_command(outputs, until="04_infer")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT
    )
    kernel = _kernel_of(process.pid)
    os.kill(kernel, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 138, out
    assert "kernel died" in out
    folder = outputs / "tiny/test/bs2"
    assert content(folder / "04_infer.failed.ipynb")["metadata"]["gma"]["status"] == "died"
    assert not (folder / "04_infer.ipynb").exists()


@pytest.mark.slow
def test_a_kernel_that_is_stopped_while_it_answers_is_silent(tmp_path, capfd):
    """Its sockets are gone then, which its libraries log with a traceback."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import logging"),
            nbformat.v4.new_code_cell("logging.getLogger('tornado.general').error('callback')"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    options = {"progress_bar": False, "extra_arguments": runner.QUIET_KERNEL}
    done = papermill.execute_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", **options)
    assert [cell["execution_count"] for cell in done["cells"]] == [1, 2]
    assert not done["cells"][1]["outputs"]
    assert "callback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeadKernelError("Kernel died"), "died"),
        (RuntimeError("Kernel died before replying to kernel_info"), "died"),
        (CellTimeoutError("too slow"), "timeout"),
        (TimeoutError("too slow"), "timeout"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError("no port"), "failed"),
    ],
)
def test_an_error_of_the_notebook_has_its_status(error, status):
    job = runner.Job("01_data", None, {}, limit_s=1, cell_limit_s=1)
    assert runner._explain(error, job)[0] == status


def _kernel_of(pid):
    """The kernel process that a runner has started; waits for it, and a moment longer."""
    for _ in range(200):
        for child in psutil.Process(pid).children(recursive=True):
            # a zombie has none
            if "ipykernel" in " ".join(child.as_dict(["cmdline"])["cmdline"] or []):
                time.sleep(1.5)
                return child.pid
        time.sleep(0.1)
    raise AssertionError("no kernel was started")


@pytest.mark.exhaustive
def test_interrupted_and_started_again(finished, tmp_path):
    """Ctrl-C in the middle of 04, then the same command: it goes on where it stopped."""
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, "04_infer")
    flow = outputs / "tiny/test/bs2/flow"
    stored = sorted(flow.rglob("frame_*.flo"))
    for path in stored[3:]:
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in stored[:3]}
    command = list_command(outputs, until="04_infer")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT
    )
    _kernel_of(process.pid)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "interrupted" in out
    assert not (outputs / "tiny/test/bs2/04_infer.ipynb").exists()
    assert run_stage("04_infer", outputs).returncode == 0
    assert len(list(flow.rglob("frame_*.flo"))) == 8
    assert all(path.stat().st_mtime_ns == times[path] for path in times)


def start_stage(outputs, *settings, **options):
    """01_data in a process of its own: one that takes a while."""
    command = list_command(outputs, *settings, until="01_data")
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT, **options
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kernel_ends_with_its_runner(tmp_path, number):
    process = start_stage(tmp_path, "demo_height=872", "demo_width=2048")
    kernel = psutil.Process(_kernel_of(process.pid))
    process.send_signal(number)
    process.communicate(timeout=20)
    kernel.wait(2)
    if number == signal.SIGINT:
        return
    assert run_stage("01_data", tmp_path, "demo_frames=2").returncode == 0
    left = [path.name for path in (tmp_path / "tiny/data").iterdir()]
    assert not [name for name in left if name.startswith(".gma-") or "running" in name]


@pytest.mark.exhaustive
def test_a_second_run_waits_for_the_first(tmp_path):
    lock = tmp_path / "tiny/data/.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = start_stage(tmp_path, "demo_frames=2")
        line = process.stdout.readline()
        assert line.startswith("waiting for another run")
        assert "01_data" in line
        assert not list(lock.parent.glob("*.ipynb"))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out


@pytest.mark.exhaustive
def test_a_stage_holds_the_lock_of_every_run(tmp_path, monkeypatch):
    """Whose measurements wait for it, wherever its results go."""
    held = []

    def execute(job, running):
        with open(locate_machine_lock()) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(job.stage)
        raise OSError("no need to compute")

    monkeypatch.setattr(runner, "_execute_cells", execute)
    command = ["reproduce", "--profile=tiny", "--until=01_data", f"--set=outputs={tmp_path}"]
    gma(*command, exit_code=1)
    assert held == ["01_data"]


@pytest.mark.slow
def test_kernels_are_those_of_this_environment(tmp_path, monkeypatch):
    """A path of other kernels comes before it, and so does the library that they import."""
    seen = []
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *_, **__: seen.append(os.environ.get("JUPYTER_PATH"))
    )
    monkeypatch.setattr(os, "environ", os.environ | {"JUPYTER_PATH": "/of/another/site"})
    command = ["reproduce", "--profile=tiny", "--until=01_data", f"--set=outputs={tmp_path}"]
    gma(*command, exit_code=1)  # as no notebook ran
    assert seen == [None]


@pytest.mark.slow
def test_no_loopback_is_a_sentence_at_once(tmp_path):
    """A network namespace of its own, whose loopback is down."""
    tool = shutil.which("unshare")
    if not tool or subprocess.run([tool, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to use it")
    command = ["unshare", "-rn", *list_command(tmp_path, until="01_data")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert done.returncode == 1
    assert "127.0.0.1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.exhaustive
def test_notebooks_need_no_home(tmp_path):
    environment = os.environ | {"HOME": "/proc/no/home", "TMPDIR": "/proc/no/tmp"}
    environment["PYTHONOPTIMIZE"] = "2"  # without which their checks are made
    out, errors = start_stage(tmp_path, "demo_frames=2", env=environment).communicate(timeout=120)
    assert "01_data: done" in out, out + errors
    assert not list(tmp_path.rglob("*kernel*"))


@pytest.mark.exhaustive
def test_what_does_not_fit_becomes_rows(finished, tmp_path, monkeypatch):
    """The batch size gets its rows, later stages are skipped with the reason, and 06 still writes
    its own.
    """
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, "03_convert")
    environment = os.environ | {"GMA_MEMORY_BYTES": "100000000"}
    command = list_command(outputs)
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    words = {
        stage: content(outputs / f"tiny/test/bs2/.{stage}.json")["status"]
        for stage in list(STAGES)[2:]
    }
    assert words == {
        "03_convert": "out_of_memory",
        "04_infer": "skipped",
        "05_evaluate": "skipped",
        "06_perf": "ok",
        "07_inside": "skipped",
    }
    assert content(outputs / "tiny/test/bs2/perf.json")["status"] == "out_of_memory"
    page = report.write_index(outputs, "tiny").read_text()
    assert "does not fit" in page
    assert "not started: batch size 2 on openvino in float32 needs about" in page


def test_the_library_of_another_checkout_is_refused(tmp_path, monkeypatch):
    """As an environment does whose editable installation points elsewhere."""
    other = tmp_path / "gma_lib"
    other.mkdir()
    (other / "__init__.py").touch()
    runner._require_own_library()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"imports gma_lib from {other}"):
        runner._require_own_library()


@pytest.mark.slow
def test_a_stage_does_not_start_on_what_another_run_has_changed_since(tmp_path, monkeypatch):
    """Other frames, or a network of other updates; it starts where they are the same."""
    given = {"outputs": str(tmp_path), "run": "test", "batch_size": 2}
    parameters = resolve_parameters("tiny", given)
    started = []
    monkeypatch.setattr(
        runner, "_publish", lambda job, page: started.append(job.stage) or ("failed", "")
    )
    run, settings = start_run(read_parameters("02_export") | parameters)
    write_settings(run, settings)
    write_json(locate_record("01_data", run), {"pairs": []})
    for stage in ("01_data", "02_export"):
        declared = {name: parameters[name] for name in read_parameters(stage) if name in parameters}
        write_stamp(run, Stamp(stage, "ok", "", 1.0, declared, {}, {}))
    assert runner.run_stage("03_convert", parameters, write_page=None) == "failed"
    locate_stamp("03_convert", run).unlink()
    for name in ("demo_height", "num_updates"):
        other = parameters | {name: parameters[name] + 8}
        with pytest.raises(runner.NotReady, match=name):
            runner.run_stage("03_convert", other, write_page=None)
    assert started == ["03_convert"]
    assert not locate_stamp("03_convert", run).exists()
