"""Recipes: what is refused before any work, what is made, and runs that survive."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from gma_lib.cli import main
from gma_lib.network.checkpoints import (
    WEIGHTS_FOLDER,
    load_checkpoint,
    make_seeded_weights,
    save_checkpoint,
)
from gma_lib.runs.files import PROJECT, BadFile, hash_file
from gma_lib.runs.machine import find_processor
from gma_lib.runs.processes import lock_path
from gma_lib.runs.records import read_json, write_json
from gma_lib.training import model_card as card
from gma_lib.training import trainer
from gma_lib.training.config import load_recipe
from gma_lib.training.recipe import read_seconds, run_recipe, shorten_recipe

SHIPPED = PROJECT / "params" / "recipe.yaml"
pytestmark = pytest.mark.slow
BUNDLED = WEIGHTS_FOLDER / "gma-procedural.safetensors"


def describe(tiny, folder):
    """A recipe: a base, a part from it and the mean of both; nothing of it takes long to check."""
    base = save_checkpoint(folder / "base.safetensors", make_seeded_weights(seed=1))
    return {
        "settings": {name: value for name, value in tiny.items() if name not in ("phases", "seed")},
        "phase": tiny["phases"][0],
        "parts": [
            {"name": "a", "what": "x", "base": {"file": str(base), "sha256": hash_file(base)}},
            {"name": "b", "what": "x", "start": "a", "training": {"seed": 3, "phases": [{}]}},
            {"name": "c", "what": "x", "mean": {"a": 0.25, "b": 0.75}},
        ],
    }


@pytest.fixture
def content(tiny, tmp_path):
    return describe(tiny, tmp_path)


def write(content, path):
    path.write_text(yaml.safe_dump(content))
    return path


def change(entry, value):
    """A change of the recipe, as a function: ``entry`` is its place, joined by dots."""

    def apply(content):
        *places, last = entry.split(".")
        for place in places:
            content = content[int(place) if place.isdigit() else place]
        content[last] = value

    return apply


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (change("parts.1.start", "z"), "b is made from z"),
        (change("parts.2.mean", {"b": 0.5, "z": 0.5}), "c is made from z"),
        (change("parts.2.mean", {"a": 0.5, "b": 0.6}), "c: the factors add up to 1.1"),
        (change("parts.2.name", "a"), "two parts are called a"),
        (change("parts.1.training.sed", 3), "parts.1.training.sed"),
        (change("parts.1.mean", {"a": 1.0}), "b needs"),
        (change("parts.0.base.sha256", "0" * 64), "SHA-256 " + "0" * 64),
        (change("parts.0.base.file", "/no/such/file"), "/no/such/file: no such file"),
        (change("parts.1.training.seed", 20211010), "seed 20211010"),
        (change("parts.1.training.seed", 20211011), "seed 20211011"),
        (change("settings", 3), "settings"),
        (change("parts", []), "parts"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence_before_any_work(content, tmp_path, wrong, named):
    wrong(content)
    file, out = write(content, tmp_path / "recipe.yaml"), tmp_path / "out"
    found = CliRunner().invoke(main, ["train", "--recipe", str(file), "--out", str(out)])
    assert found.exit_code == 1
    assert named in found.output
    assert len(found.output.strip().splitlines()) == 1
    assert not out.exists()


def test_a_base_that_the_history_lacks_names_the_command_that_writes_it(content, tmp_path):
    base = {"file": str(tmp_path / "none.safetensors"), "revision": "HEAD:no/such/file"}
    content["parts"][0]["base"] |= base
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    with pytest.raises(BadFile, match="git show HEAD:no/such/file"):
        run_recipe(recipe, tmp_path / "out")


def test_what_a_base_stands_for_is_not_run(content, tmp_path):
    content["parts"][1]["base"] = dict(content["parts"][0]["base"])
    content["parts"][1]["training"]["seed"] = 20211010  # of the held-out scenes
    content["parts"][2]["mean"] = {"b": 1.0}
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    assert [part.name for part in recipe.needed] == ["b", "c"]
    made = load_checkpoint(run_recipe(recipe, tmp_path / "out")).state
    for name, value in make_seeded_weights(seed=1).items():
        assert torch.equal(made[name], value.half().to(value.dtype))


def test_a_mean_weighs_its_parts(content, tmp_path):
    file = save_checkpoint(tmp_path / "other.safetensors", make_seeded_weights(seed=2))
    base = {"file": str(file), "sha256": hash_file(file)}
    content["parts"][1] = {"name": "b", "what": "x", "base": base}
    run_recipe(load_recipe(write(content, tmp_path / "recipe.yaml")), tmp_path / "out")
    name = "fnet.conv1.weight"
    one, two = (make_seeded_weights(seed=seed)[name] for seed in (1, 2))
    found = load_checkpoint(tmp_path / "out" / "c" / "averaged.safetensors").state[name]
    assert torch.allclose(found, 0.25 * one + 0.75 * two, atol=1e-7)


def test_of_a_start_one_part_of_the_network_may_be_kept(content, tmp_path):
    content["settings"] |= {"validation_pairs": 0}
    content["parts"] = content["parts"][:2]
    content["parts"][1] |= {"only": "fnet"}
    phase = {"steps": 1, "learning_rate": 1e-9, "final_learning_rate": 0.0, "num_updates": 1}
    content["parts"][1]["training"]["phases"] = [phase]
    run_recipe(load_recipe(write(content, tmp_path / "recipe.yaml")), tmp_path / "out")
    found = load_checkpoint(tmp_path / "out" / "b" / "averaged.safetensors").state
    start = make_seeded_weights(seed=1)
    same = {name for name in start if torch.allclose(found[name], start[name], atol=1e-6)}
    assert {name for name in start if name.startswith("fnet")} <= same
    assert "cnet.conv1.weight" not in same
    assert "update_block.encoder.convc1.weight" not in same


def test_another_recipe_is_refused_by_the_names_of_its_fields(content, tmp_path):
    content["parts"] = [content["parts"][0], {"name": "c", "what": "x", "mean": {"a": 1.0}}]
    run_recipe(load_recipe(write(content, tmp_path / "recipe.yaml")), tmp_path / "out")
    content["parts"][1]["what"] = "y"
    changed = load_recipe(write(content, tmp_path / "recipe.yaml"))
    with pytest.raises(ValueError, match=r"differs in parts\[1\].what;"):
        run_recipe(changed, tmp_path / "out")


def test_a_record_that_was_changed_is_not_believed(content, tmp_path):
    content["parts"] = [content["parts"][0], {"name": "c", "what": "x", "mean": {"a": 1.0}}]
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    run_recipe(recipe, tmp_path / "out")
    record = tmp_path / "out" / "recipe.json"
    record.write_text(record.read_text().replace('"what": "x"', '"what": "y"'))
    with pytest.raises(ValueError, match="was changed since"):
        run_recipe(recipe, tmp_path / "out")


def test_one_process_makes_a_recipe_in_a_folder(content, tmp_path):
    content["parts"] = [content["parts"][0], {"name": "c", "what": "x", "mean": {"a": 1.0}}]
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    with lock_path(tmp_path / ".recipe.lock"), pytest.raises(ValueError, match="another process"):
        run_recipe(recipe, tmp_path)
    assert not (tmp_path / "recipe.json").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "either --config or --recipe"),
        (("--config", "x", "--recipe", "x"), "either --config or --recipe"),
        (("--config", "x", "--short"), "--short"),
        (("--recipe", "x", "--resume"), "goes on by itself"),
        (("--recipe", "x", "--device", "abacus"), "no 'abacus'"),
        (("--recipe", "x"), "x: no such file"),
        (("--recipe", "."), "a folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["train", *options])
    assert found.exit_code
    assert named in found.output


def test_weights_that_were_changed_since_are_not_built_upon(content, tmp_path):
    content["parts"] = [content["parts"][0], {"name": "c", "what": "x", "mean": {"a": 1.0}}]
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    run_recipe(recipe, tmp_path / "out")
    save_checkpoint(tmp_path / "out" / "c" / "averaged.safetensors", make_seeded_weights(seed=2))
    with pytest.raises(ValueError, match="was changed"):
        run_recipe(recipe, tmp_path / "out")


@pytest.mark.exhaustive
def test_the_shipped_recipe_cut_to_a_minute_gives_one_digest_killed_or_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # In processes of their own: the number of threads decides the rounding, and so the digest.
    command = [sys.executable, "-m", "gma_lib.cli", "train", "--recipe", str(SHIPPED), "--short"]
    process = subprocess.Popen([*command, "--out", str(killed)], cwd=PROJECT)
    records = killed / "recipe.json"
    while not (records.is_file() and "part-15" in json.loads(records.read_text())["records"]):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = json.loads(records.read_text())["records"]
    assert not (killed / "weights.safetensors").exists()
    for folder in (whole, killed):
        subprocess.run([*command, "--out", str(folder)], cwd=PROJECT, check=True)
    made = [hash_file(folder / "weights.safetensors") for folder in (whole, killed)]
    assert made[0] == made[1]
    assert json.loads(records.read_text())["records"].items() >= kept.items()


def test_a_run_says_whether_it_made_what_shipped(content, tmp_path, messages):
    """Another file is no failure, and the digest no setting: the same folder goes on."""
    content["parts"] = [content["parts"][0], {"name": "c", "what": "x", "mean": {"a": 1.0}}]
    made = run_recipe(load_recipe(write(content, tmp_path / "recipe.yaml")), tmp_path / "out")
    assert not any("shipped" in message for message in messages)
    for digest, said in ((hash_file(made), "is what shipped"), ("0" * 64, "differs")):
        named = load_recipe(write(content | {"sha256": digest}, tmp_path / "recipe.yaml"))
        run_recipe(named, tmp_path / "out")
        assert said in messages[-1]


def test_the_recipe_names_what_ships_and_a_short_one_nothing():
    recipe = load_recipe(SHIPPED)
    assert recipe.sha256 == hash_file(BUNDLED)
    assert shorten_recipe(recipe).sha256 is None


@pytest.fixture(scope="module")
def finished_recipe(kept_tiny, tmp_path_factory):
    """A folder with a recipe of one step and its finished run, which tests copy."""
    place = tmp_path_factory.mktemp("recipe")
    content = describe(kept_tiny, place)
    content["settings"] |= {"validation_pairs": 0}
    content["parts"][1]["training"]["phases"] = [{"steps": 1}]
    run_recipe(load_recipe(write(content, place / "recipe.yaml")), place / "out")
    return place


@pytest.fixture
def made(finished_recipe, tmp_path, monkeypatch):
    """The folder of a finished run of the card's recipe, and a card of other weights."""
    monkeypatch.setattr(card, "RECIPE", finished_recipe / "recipe.yaml")
    monkeypatch.setattr(card.network, "WEIGHTS_FOLDER", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    shutil.copy(BUNDLED.with_suffix(".json"), tmp_path / "weights")
    return shutil.copytree(finished_recipe / "out", tmp_path / "out")


def test_the_card_takes_over_what_the_recipe_made(made, tmp_path, monkeypatch):
    numbers = json.loads(BUNDLED.with_suffix(".json").read_text())
    found = card.write_card(run=made)
    digest = hash_file(made / "weights.safetensors")
    assert found["sha256"] == digest
    assert hash_file(tmp_path / "weights" / "gma-procedural.safetensors") == digest
    assert json.loads((tmp_path / "weights" / "gma-procedural.json").read_text()) == found
    page = (tmp_path / "weights" / "gma-procedural.md").read_text()
    assert "0.25 a + 0.75 b" in page
    assert "Not scored yet" in page  # the scores were those of other weights
    assert digest in page
    assert numbers["sha256"] not in page
    # nor were these weights among the candidates of others, or made on their machines
    assert not {"rule", "remarks", "commit"} & found["how"].keys()
    assert numbers["how"]["hardware"] not in page
    assert find_processor() in found["how"]["hardware"]
    monkeypatch.setattr(card, "RECIPE", SHIPPED)
    with pytest.raises(ValueError, match="by parts"):
        card.write_card(run=made)


def is_no_file_of_weights(made):
    (made / "weights.safetensors").write_bytes(b"no weights")


def is_of_another_run(made):
    save_checkpoint(made / "weights.safetensors", make_seeded_weights(seed=2))


def is_not_there(made):
    (made / "weights.safetensors").unlink()


def is_not_finished(made):
    record = read_json(made / "recipe.json", made_by="")
    del record["result"]
    write_json(made / "recipe.json", record)


@pytest.mark.parametrize(
    "damage", [is_no_file_of_weights, is_of_another_run, is_not_there, is_not_finished]
)
def test_the_card_takes_over_nothing_but_the_result_of_a_finished_run(made, tmp_path, damage):
    damage(made)
    before = {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    with pytest.raises(BadFile, match="weights"):
        card.write_card(run=made)
    assert {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()} == before


def test_the_time_of_a_run_is_said_by_what_it_was_spent_on(content, tmp_path):
    recipe = load_recipe(write(content, tmp_path / "recipe.yaml"))
    before = {"a": {"minutes": 10.0, "curve": [1]}, "gone": {"minutes": 99.0}}
    base = {"threads": 8, "processor": "abacus", "sha256": "0"}
    trained = base | {"device": "cpu", "threads": 3, "minutes": 5.0, "earlier": []}
    how = card.describe_making(recipe, before, {"a": base, "b": trained, "c": base})
    assert how["records"] == {"a": before["a"], "b": trained, "c": base}  # a was not trained
    assert (how["minutes"], how["device_minutes"]) == (25, {})  # 10 of one core, 5 of three
    how = card.describe_making(recipe, before, {"b": trained | {"device": "cuda"}})
    assert (how["minutes"], how["device_minutes"]) == (10, {"cuda": 5})
    assert "10 minutes of one processor core and 5 minutes of a cuda device" in card.compose_note(
        how, {}, {}
    )
    how = card.describe_making(recipe, {}, {"b": trained | {"device": "cuda"}})
    assert "core" not in card.describe_time(how)
    assert "core" in card.describe_time(card.describe_making(recipe, {}, {}))


@pytest.fixture
def trained(content):
    """A recipe of one part of two steps, from drawn weights."""
    content["settings"] |= {"validation_pairs": 0}
    training = {"seed": 3, "phases": [{"steps": 2, "num_updates": 1}]}
    content["parts"] = [{"name": "b", "what": "x", "training": training}]
    return content


def kill_after_a_step(monkeypatch, recipe, folder):
    """Run a recipe until its training has taken a step and saved it."""
    with monkeypatch.context() as patch:

        def die(trainer, place):
            trainer.advance()
            trainer.save(place / "checkpoint.pt")
            raise KeyboardInterrupt

        patch.setattr(trainer, "_train_on", die)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, folder)


def test_a_relative_folder_starts_at_the_current_one(trained, tmp_path, monkeypatch):
    """And not at the project, which may hold another run of that name."""
    recipe = load_recipe(write(trained, tmp_path / "recipe.yaml"))
    project, here = tmp_path / "project", tmp_path / "here"
    other = project / "run" / "b" / "averaged.safetensors"
    save_checkpoint(other, make_seeded_weights(seed=2))
    here.mkdir()
    monkeypatch.setattr("gma_lib.runs.files.PROJECT", project)
    monkeypatch.chdir(here)
    made = run_recipe(recipe, Path("run"))
    assert made == here / "run" / "weights.safetensors"
    found, mine, others = (
        load_checkpoint(file).state["fnet.conv1.weight"]
        for file in (made, here / "run" / "b" / "averaged.safetensors", other)
    )
    assert torch.equal(found, mine.half().float())
    assert not torch.equal(found, others.half().float())


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_part_that_was_begun_from_other_weights_is_not_resumed(
    trained, tmp_path, monkeypatch, is_restored
):
    out = tmp_path / "out"
    alone = load_recipe(write(trained, tmp_path / "recipe.yaml"))
    kill_after_a_step(monkeypatch, alone, out)
    if is_restored:
        assert run_recipe(alone, out).is_file()
        return
    file = tmp_path / "base.safetensors"
    base = {"name": "a", "what": "x", "base": {"file": str(file), "sha256": hash_file(file)}}
    trained["parts"] = [base, trained["parts"][0] | {"start": "a"}]
    from_a = load_recipe(write(trained, tmp_path / "recipe.yaml"))
    with pytest.raises(ValueError, match="start"):
        run_recipe(from_a, out)
    (out / "b" / "begun.json").unlink()
    with pytest.raises(ValueError, match="delete that folder"):
        run_recipe(from_a, out)


def test_a_record_names_every_process_and_the_minutes_of_each(trained, tmp_path, monkeypatch):
    """Of three processes, two were killed; each has its own threads and device."""
    trained["parts"][0]["training"]["phases"][0]["steps"] = 3
    recipe, out = load_recipe(write(trained, tmp_path / "recipe.yaml")), tmp_path / "out"
    here = find_processor()
    kill_after_a_step(monkeypatch, recipe, out)
    note = out / "b" / "begun.json"
    monkeypatch.setattr("gma_lib.training.recipe.read_seconds", lambda path: 6000.0)
    monkeypatch.setattr("gma_lib.runs.find_processor", lambda: "abacus")
    kill_after_a_step(monkeypatch, recipe, out)
    monkeypatch.setattr("gma_lib.training.recipe.read_seconds", lambda path: 6300.0)
    monkeypatch.setattr("gma_lib.runs.find_processor", lambda: "slide rule")
    run_recipe(recipe, out)
    assert [one["after_s"] for one in read_json(note, made_by="")["processes"]] == [0, 6000, 6300]
    record = json.loads((out / "recipe.json").read_text())["records"]["b"]
    assert [one["minutes"] for one in record["earlier"]] == [100, 5]
    assert [one["processor"] for one in record["earlier"]] == [here, "abacus"]
    assert record["processor"] == "slide rule"
    first, second = record["earlier"]
    record |= {"minutes": 108.0, "threads": 2, "device": "cpu"}
    record["earlier"] = [first | {"threads": 8}, second | {"device": "cuda"}]
    how = card.describe_making(recipe, {}, {"b": record})
    assert (how["minutes"], how["device_minutes"]) == (8 * 100 + 2 * 3, {"cuda": 5})


def test_a_checkpoint_names_the_seconds_of_its_training(trained, tmp_path, monkeypatch):
    recipe = load_recipe(write(trained, tmp_path / "recipe.yaml"))
    kill_after_a_step(monkeypatch, recipe, tmp_path)
    assert read_seconds(tmp_path / "b" / "checkpoint.pt") > 0
    (tmp_path / "b" / "checkpoint.pt").write_bytes(b"none")
    with pytest.raises(BadFile, match="checkpoint of a training"):
        read_seconds(tmp_path / "b" / "checkpoint.pt")
