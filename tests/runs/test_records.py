"""Records carry schema and provenance, and are read only where they are whole and current."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gma_lib.runs import records
from gma_lib.runs.files import PROJECT


def test_a_record_holds_plain_values_and_what_made_it(tmp_path):
    records.write_json(
        tmp_path / "a.json",
        {
            "epe": np.float32(0.5),
            "wauc": float("nan"),
            "steps": (1, np.int64(2)),
            "by_size": {1: PROJECT / "outputs", "else": Path("relative")},
        },
    )
    found = records.read_json(tmp_path / "a.json", made_by="05_evaluate")
    assert list(found)[:2] == ["schema", "provenance"]
    assert found["epe"] == 0.5
    assert found["wauc"] is None
    assert found["steps"] == [1, 2]
    assert found["by_size"] == {"1": "outputs", "else": "relative"}
    assert found["provenance"]["machine"]["cores"] >= 1
    assert found["provenance"]["versions"]["numpy"] == np.__version__


def test_a_missing_record_names_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json.*04_infer"):
        records.read_json(tmp_path / "a.json", made_by="04_infer")


@pytest.mark.parametrize(
    "content",
    [*("{", json.dumps({"schema": records.SCHEMA + 1}), "{}", "null", "[]", "\xff"), "[" * 100_000],
)
def test_a_damaged_or_older_record_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.json.*04_infer"):
        records.read_json(tmp_path / "a.json", made_by="04_infer")


@pytest.mark.parametrize(
    "change",
    [
        {"height": "128"},
        {"height": 129},
        {"extra": 1},
        {"size": None},
        {"height": None},
        {"provenance": {}},
        {records.SEAL: None},
    ],
)
def test_a_record_that_is_not_as_it_was_written_is_refused(tmp_path, change):
    """A wrong type, another value, a name too many or too few, at any depth."""
    path = tmp_path / "a.json"
    records.write_json(path, {"height": 128, "size": {"width": 160}, "rate": 0.1, "none": math.nan})
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole, indent=3))  # its layout does not matter
    assert records.read_json(path, made_by="01_data")["size"] == {"width": 160}
    for changed in (
        whole | change,
        {name: value for name, value in whole.items() if name not in change} | {"b": 1},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"a\.json was changed.* run 01_data again"):
            records.read_json(path, made_by="01_data")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"fl": null', '"fl": NaN'),
        ('"fl": null', '"fl": 1e999'),
        ('"fl": null', '"fl": 0.1, "fl": null'),
        ('"fl": null', '"fl": ' + "1" * 400),
        ('"fl": null', '"fl": ' + "1" * 5000),
    ],
    ids=["NaN", "infinite", "twice", "digits", "more-digits"],
)
def test_what_a_digest_would_not_show_is_refused(tmp_path, before, after):
    path = tmp_path / "a.json"
    records.write_json(path, {"fl": None})
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=r"a\.json.*04_infer") as error:
        records.read_json(path, made_by="04_infer")
    assert len(str(error.value)) < 300


def test_numbers_are_read_as_written():
    text = "[1, -2, 1.0, 2e3, 12345678901234567890]"
    assert json.dumps(records.parse_json(text)) == text.replace("2e3", "2000.0")


def test_provenance_is_a_sentence():
    line = records.describe_provenance()
    assert line.startswith("Made by gma_lib ")
    assert f"numpy {np.__version__}" in line


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: \0",
        "a: 2020-13-45",
        "a: &b [1]\nc: *b",
        "[" * 5000,
        "a: !!python/none x",
        "a" * 60_000,
        "a: 1\nb: 2\na: 3",
        "a: {b: 1, b: 1}",
        "a: 012",
        "a: [0x10]",
        "a: 1_0",
        "a: 1:30",
        "a: 0b11",
    ],
)
def test_yaml_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match="YAML"):
        records.parse_yaml(text)
    assert records.parse_yaml("a: [[[1]]]") == {"a": [[[1]]]}
    assert records.parse_yaml("a: [1, 2.5, null]\nb: x") == {"a": [1, 2.5, None], "b": "x"}
    assert records.parse_yaml("[0, -1, .5, 5., 1.0e-4, '012']") == [0, -1, 0.5, 5.0, 1e-4, "012"]


@pytest.mark.parametrize("loaded", [True, False])
def test_instruction_sets_are_told_where_pytorch_is_loaded(loaded):
    """Which is not imported for that, as it takes seconds."""
    code = "import sys, json; from gma_lib.runs.records import trace_provenance; "
    code += "import torch; " if loaded else ""
    code += "print(json.dumps([trace_provenance().get('computing'), 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    computing, imported = json.loads(done.stdout)
    assert imported is loaded
    assert (set(computing) if computing else None) == (
        {"instruction set", "threads"} if loaded else None
    )
