"""Records of benchmarks name the weights by their digest: new ones may have the old ones' name."""

import json

import aggregation
import determinism
import pandas as pd
import pytest
import rehearsal
from click.testing import CliRunner

from gma_lib.cli import bench
from gma_lib.data.sintel import find_pairs
from gma_lib.network.bundled import WEIGHTS_FOLDER
from gma_lib.runs.files import hash_file

BUNDLED = WEIGHTS_FOLDER / "gma-procedural.safetensors"


def read_weights(command, *arguments, out):
    """Run a command that writes a record; return the digest of weights in it."""
    done = CliRunner().invoke(command, [*map(str, arguments), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text())["checkpoint_sha256"]


def test_determinism(monkeypatch, tmp_path):
    monkeypatch.setattr(determinism, "compute_setting", lambda *_: None)
    monkeypatch.setattr(determinism, "group_by_kind", lambda _: {})
    monkeypatch.setattr(determinism, "compare_settings", lambda _: {})
    found = read_weights(determinism.main, tmp_path, out=tmp_path / "a.json")
    assert found == hash_file(BUNDLED)


def test_rehearsal(monkeypatch, tmp_path):
    monkeypatch.setattr(rehearsal, "HOME", tmp_path / "home")
    monkeypatch.setattr(rehearsal, "make_tree", lambda root: tmp_path)
    monkeypatch.setattr(rehearsal, "run", lambda *_: {})
    (tmp_path / "home").mkdir()
    assert read_weights(rehearsal.main, out=tmp_path / "a.json") == hash_file(BUNDLED)


def test_half_precision(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "choose_pairs", lambda *_: [])
    monkeypatch.setattr(bench, "study_variants", lambda *_, **__: pd.DataFrame())
    monkeypatch.setattr(bench, "tabulate_study", lambda _: "")
    found = read_weights(bench.emulate_half, tmp_path, out=tmp_path / "a.json")
    assert found == hash_file(BUNDLED)


@pytest.fixture
def one_pair(tiny_sintel, monkeypatch):
    """Of each pass the first pair, and one update."""

    def find_one(*root, **named):
        return find_pairs(*root, **named)[:1]

    monkeypatch.setattr(aggregation, "UPDATES", 1)
    monkeypatch.setattr(aggregation, "find_pairs", find_one)
    return tiny_sintel


@pytest.mark.slow
def test_a_script_that_scores_weights(one_pair, tmp_path):
    assert read_weights(aggregation.main, one_pair, out=tmp_path / "a.json") == hash_file(BUNDLED)
