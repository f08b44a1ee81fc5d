"""Every command and every Python snippet of the pages runs, but for the exceptions listed here."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import gma

from gma_lib.data import videos
from gma_lib.flow.files import write_flow
from gma_lib.flow.images import write_frame
from gma_lib.pipeline.chain import digest_record
from gma_lib.runs.files import PROJECT
from gma_lib.runs.records import SCHEMA, write_json
from gma_lib.training import model_card
from gma_lib.training.pairs import VALIDATION, render_held_out

pytestmark = pytest.mark.exhaustive

PAGES = [
    page
    for pattern in ("README.md", "docs/*.md", "docs/reference/*.md", "weights/*.md")
    for page in sorted(PROJECT.glob(pattern))
]
# How a line begins that is not run (a regular expression), and why.
NOT_RUN = {
    r"make ": "minutes to hours; test_docs.py compares targets and variables with the Makefile",
    r"export PROFILE=": "variables for make",
    r"\. \.venv/bin/activate": "for a shell",
    r"01_data: |stage \d+ of": "what a command prints",
    r"gma verify ": "minutes; tests/verify/test_computations.py runs it on the tiny profile",
    r"gma replay ": "minutes; tests/verify/test_replay.py runs it on a tiny archive",
    r"gma record ": "rewrites expected/; tests/verify/test_expected.py runs it elsewhere",
    r"papermill ": "needs the demo's results; the stages of the tiny profile run in tests/pipeline",
    r"python ": "minutes to hours",
    r"gma train --recipe": "hours; tests/training/test_recipe.py runs a short one",
    r"gma card ": "rewrites the bundled weights",
    r"gma submit /data/": "needs MPI Sintel",
    r"gma evaluate MINE ": "another method's flow; tests/evaluate/test_any_files.py scores one",
    r"gma .* --backend cuda": "needs a GPU",
    r"CUDA_VISIBLE_DEVICES=": "needs two GPUs",
    r"AIS_PYTHON=": "needs an Ascend card",
    r"gma ascend collect ": "needs the results of an Ascend card",
    r"dask ": "needs several machines",
    r"from dask_jobqueue|cluster |cluster\.|print\(cluster": "needs Slurm",
}
SMALLER = {"--height 440 --width 1024": "--height 128 --width 160"}


def list_snippets(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of a page's snippets: indented lines are commands, one each."""
    pattern = r"^```([^\n]*)\n(.*?)^```$|^    (\S[^\n]*)$"
    for language, block, line in re.findall(pattern, page.read_text(), re.M | re.S):
        yield ("shell", line) if line else (language, block)


SNIPPETS = {page.relative_to(PROJECT).as_posix(): [*list_snippets(page)] for page in PAGES}
LINES = [line for found in SNIPPETS.values() for language, line in found if language == "shell"]


def explain(line: str) -> list[str]:
    """Why a line is not run; empty for one that is."""
    return [reason for start, reason in NOT_RUN.items() if re.match(start, line)]


def test_every_exception_is_of_a_line():
    assert [start for start in NOT_RUN if not any(re.match(start, line) for line in LINES)] == []
    assert [line for line in LINES if len(explain(line)) > 1] == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all pages: the model of a frame size is built once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(cache, tmp_path, monkeypatch, small_frames):
    """The files that the pages name, small."""
    monkeypatch.setenv("GMA_CACHE", cache)
    monkeypatch.chdir(tmp_path)
    pair = small_frames[0][0], np.roll(small_frames[0][0], (2, 5), axis=(1, 2))
    for number, frame in enumerate(pair, start=1):
        side, letter = ("left", "right")[number - 1], "ab"[number - 1]
        for name in (f"{letter}.jpg", f"{letter}.png", f"{side}/7.png", f"frames/{number}.png"):
            write_frame(tmp_path / name, frame)
    pictures = [frame.astype(np.uint8).transpose(1, 2, 0) for frame in pair]
    videos.write_movie(tmp_path / "clip.mp4", iter(pictures), [Fraction(n, 25) for n in range(3)])
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    for name in ("truth.flo", "truth/7.flo"):
        write_flow(tmp_path / name, np.full((2, *pair[0].shape[1:]), 5, np.float32))
    return tmp_path


@pytest.fixture
def trained(folder, monkeypatch):
    """What training leaves and reads, cut down to a step and a pair."""
    weights = folder / "outputs" / "training" / "averaged.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes((PROJECT / "weights" / "gma-procedural.safetensors").read_bytes())
    config = yaml.safe_load((PROJECT / "params" / "train.yaml").read_text())
    small = config["phases"][2] | {"steps": 1, "batch_size": 1}
    config |= {"textures": 6, "validation_pairs": 1, "phases": [small]}
    (folder / "params").mkdir()
    for name in ("my.yaml", "params/train.yaml"):
        (folder / name).write_text(yaml.safe_dump(config))
    validation = replace(VALIDATION, height=128, width=128)
    monkeypatch.setattr(render_held_out, "__defaults__", (validation,))
    monkeypatch.setattr(model_card, "TEST_PAIRS", 1)


@pytest.fixture
def inferred(folder):
    """The records of a run that ``gma plan`` reads."""
    shard = {"first": "clean/a/frame_0001", "worker": "worker 1", "start": 0.5, "seconds": 10}
    summary = {"computed": 1, "reused": 0, "threads": 2, "shards": [shard]}
    before = {
        "export": {"size": {"height": 440, "width": 1024}},
        "convert": {"backend": "openvino", "precision": "float32", "at_once": 1},
    }
    made_from = {
        stage: digest_record({"schema": SCHEMA} | before[name])
        for stage, name in (("02_export", "export"), ("03_convert", "convert"))
    }
    inferred = {"batch_size": 1, "summary": summary, "made_from": made_from}
    for name, record in (before | {"infer": inferred}).items():
        write_json(folder / "outputs/demo/openvino-float32/bs1" / f"{name}.json", record)


def run_line(line: str) -> None:
    """Run a command of a page; the files that it is to write have to be there afterwards."""
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    program, *words = shlex.split(line, comments=True)
    assert Path(program).name == "gma", f"{line}: run it here, or add it to NOT_RUN with a reason"
    gma(*words)
    for option, name in pairwise(words):
        assert option not in ("-o", "--figure", "--out") or Path(name).exists(), line


@pytest.mark.parametrize(
    "page",
    [
        page
        for page, found in SNIPPETS.items()
        if any(kind == "python" or (kind == "shell" and not explain(line)) for kind, line in found)
    ],
)
@pytest.mark.usefixtures("folder", "trained", "inferred")
def test_every_snippet_of_a_page_runs(page):
    for language, text in SNIPPETS[page]:
        if language == "python":
            exec(compile(text, page, "exec"), {})
        elif language == "shell" and not explain(text):
            run_line(text)
