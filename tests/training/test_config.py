"""Configurations are checked, and refused by the name of what is wrong."""

import dataclasses

import pytest
import yaml

from gma_lib import runs
from gma_lib.runs.files import PROJECT
from gma_lib.training.config import Part, load_config, parse_config, warn_of_slow_bfloat16


def test_the_shipped_configuration_is_fine():
    config = load_config(PROJECT / "params" / "train.yaml")
    assert config.steps > 0
    assert config.precision == "bfloat16"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "float8", "precision: .*'bfloat16' or 'float32', not 'float8'"),
        ("optimiser", "sgd", "optimiser: .*'adamw' or 'muon', not 'sgd'"),
        ("clip", 0.0, "clip: .*greater than 0, not 0.0"),
        ("clip", "one", "clip: .*number, not 'one'"),
        ("seed", 1.5, "seed: .*integer, not 1.5"),
        ("seed", True, "seed: .*integer, not True"),
        ("weight_decay", float("nan"), "weight_decay: .*finite number, not nan"),
        ("ema_decay", 1.5, "ema_decay: .*equal to 1, not 1.5"),
        ("phases", [], "phases: .*at least 1"),
        ("phases", 5, "phases: .*array, not 5"),
        ("photographs", -1, "photographs: .*equal to 0, not -1"),
        ("momentum", 0.9, "momentum: Unexpected"),
    ],
)
def test_impossible_values_are_refused_by_name(tmp_path, tiny, name, value, message):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(tiny | {name: value}))
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("height", 100, "128x100"),
        ("steps", 0, "phases.1.steps: .*greater than 0, not 0"),
        ("photometric", 2.0, "phases.1.photometric: .*equal to 1, not 2.0"),
        ("relief", -0.1, "phases.1.relief: .*equal to 0, not -0.1"),
        ("dim", 1.5, "phases.1.dim: .*equal to 1, not 1.5"),
        ("final_learning_rate", 1.0, "phases.1: final_learning_rate .*, not 1.0"),
        ("final_learning_rate", -1.0, "phases.1.final_learning_rate: .*equal to 0"),
        ("learn_occluded", "yes", "phases.1.learn_occluded: .*boolean"),
        ("max_displacement", 1.0, "phases.1: max_displacement .* above min_displacement"),
        ("matching", -1.0, "phases.1.matching: .*equal to 0"),
        ("loss_power", 0.0, "phases.1.loss_power: .*greater than 0, not 0"),
        ("batch_size", 65, "phases.1.batch_size: .*equal to 64"),
        ("layers", [5, 2], "phases.1: layers .*rising"),
        ("layers", 5, "phases.1.layers: "),
        ("layers", [1, 2.5], "phases.1.layers.1: .*integer, not 2.5"),
        ("lr", 1.0, "phases.1.lr: Unexpected"),
    ],
)
def test_impossible_phases_are_refused_by_name(tiny, name, value, message):
    tiny["phases"][1][name] = value
    with pytest.raises(ValueError, match=message):
        parse_config(tiny)


@pytest.mark.parametrize("matching", [0.1, 0.0])
def test_a_phase_without_updates_learns_by_matching(tiny, matching):
    """Nothing else would have a gradient."""
    tiny["phases"][1] |= {"num_updates": 0, "matching": matching}
    if matching:
        assert parse_config(tiny).phases[1].num_updates == 0
    else:
        with pytest.raises(ValueError, match=r"matching .* above 0"):
            parse_config(tiny)


@pytest.mark.parametrize(
    ("ways", "is_refused"),
    [
        ({"start": "a", "only": "fnet", "training": True}, False),
        ({"start": "a", "mean": {"a": 1.0}}, True),
        ({"only": "fnet", "training": True}, True),
    ],
)
def test_only_a_part_that_is_trained_starts_from_another(config, ways, is_refused):
    part = ways | ({"training": config} if "training" in ways else {})
    if is_refused:
        with pytest.raises(ValueError, match="b: start"):
            Part("b", "x", **part)
    else:
        assert Part("b", "x", **part).sources == {"a"}


def test_a_missing_entry_is_named(tiny):
    content = {name: value for name, value in tiny.items() if name != "clip"}
    with pytest.raises(ValueError, match="clip: Field required"):
        parse_config(content)


def test_the_learning_rate_rises_and_falls_within_each_phase(config):
    phase = dataclasses.replace(config.phases[0], steps=100)
    rates = [
        dataclasses.replace(config, phases=(phase, phase)).learning_rate(step)
        for step in range(200)
    ]
    assert max(rates) == pytest.approx(phase.learning_rate)
    assert rates[:100] == rates[100:]
    assert rates[0] < rates[4]
    assert rates[99] == pytest.approx(phase.final_learning_rate, rel=0.2)


@pytest.mark.parametrize(
    ("precision", "optimiser", "device", "is_fast", "is_told"),
    [
        ("bfloat16", "adamw", "cpu", False, True),
        ("float32", "muon", "cpu", False, True),
        ("float32", "adamw", "cpu", False, False),
        ("bfloat16", "muon", "cpu", True, False),
        ("bfloat16", "muon", "cuda", False, False),
    ],
)
def test_a_processor_with_slow_bfloat16_is_told_of(
    config, monkeypatch, messages, precision, optimiser, device, is_fast, is_told
):
    """A step takes many times as long where bfloat16 is emulated."""
    monkeypatch.setattr(runs, "is_bfloat16_fast", lambda: is_fast)
    changed = dataclasses.replace(config, precision=precision, optimiser=optimiser)
    warn_of_slow_bfloat16(changed, device)
    assert any("bfloat16" in line for line in messages) == is_told
