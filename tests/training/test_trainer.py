"""Training: losses, runs that survive, configurations that are checked."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from gma_lib.runs.files import PROJECT
from gma_lib.training import trainer as training
from gma_lib.training.trainer import (
    HELD_OUT,
    VALIDATION,
    KernelMuon,
    PairSource,
    Trainer,
    TrainingDivergedError,
    config_from,
    held_out_epe,
    load_config,
    plot_curves,
    read_log,
    train,
)

TINY = {
    "seed": 3,
    "textures": 6,
    "photographs": 0,
    "precision": "float32",
    "optimiser": "adamw",
    "sequence_gamma": 0.8,
    "weight_decay": 1.0e-4,
    "clip": 1.0,
    "ema_decay": 0.9,
    "checkpoint_minutes": 1.0e-6,
    "validate_every": 100,
    "validation_pairs": 1,
    "phases": [
        {
            "name": name,
            "steps": 2,
            "height": 128,
            "width": 128,
            "batch_size": 1,
            "num_updates": updates,
            "lead_updates": 0,
            "loss_power": 1.0,
            "learning_rate": 1.0e-4,
            "final_learning_rate": 1.0e-5,
            "layers": [2, 4],
            "min_displacement": 1.5,
            "max_displacement": 12.0,
            "matching": 0.1,
            "photometric": 0.5,
            "relief": 0.5,
            "dim": 0.5,
            "learn_occluded": name == "second",
            "freeze_batch_norm": name == "second",
        }
        for name, updates in (("first", 1), ("second", 2))
    ],
}


@pytest.fixture(scope="module")
def config():
    return config_from(TINY)


@pytest.fixture(scope="module")
def source(config) -> PairSource:
    return PairSource(config)


@pytest.fixture
def small_validation(monkeypatch):
    """Validation at the smallest size: these tests ask whether it happens, not what it says."""
    monkeypatch.setattr(training.validation_families, "__defaults__", (_small(VALIDATION),))


def _small(phase):
    return dataclasses.replace(phase, height=128, width=128)


def test_a_pair_follows_from_its_number(source, config):
    phase = config.phases[0]
    first, again, other = source.pair(5, phase), source.pair(5, phase), source.pair(6, phase)
    assert torch.equal(first.image1, again.image1)
    assert torch.equal(first.flow, again.flow)
    assert not torch.equal(first.image1, other.image1)
    assert HELD_OUT > 64 * 1_000_000  # no run of a million steps meets a held-out scene


# --- losses ---------------------------------------------------------------------------------------


def test_the_matching_loss_is_low_where_features_match():
    features = 20 * torch.nn.functional.normalize(
        torch.randn(1, 256, 16, 20, generator=torch.Generator().manual_seed(0)), dim=1
    )
    truth = torch.zeros(1, 2, 128, 160)
    truth[:, 0], truth[:, 1] = 16, -8  # two cells to the right, one up
    moved = features.roll((2, -1), dims=(3, 2))
    everywhere = torch.ones(1, 128, 160, dtype=torch.bool)
    assert training.matching_loss(features, moved, truth, everywhere) < 0.01
    assert training.matching_loss(features, moved, -truth, everywhere) > 5


def test_the_sequence_loss_weighs_the_last_update_most():
    truth = torch.zeros(1, 2, 4, 4)
    learnt = torch.ones(1, 4, 4, dtype=torch.bool)
    learnt[:, :, 2:] = False
    off = torch.full_like(truth, 1.0)
    off[..., 2:] = 100  # not learnt, so it does not count
    assert training.sequence_loss([off, truth], truth, learnt, 0.8, 1.0) == pytest.approx(0.8 * 2)
    assert training.sequence_loss([truth, off], truth, learnt, 0.8, 1.0) == pytest.approx(2)


def test_with_a_power_below_one_small_errors_gain_and_hopeless_ones_lose_weight():
    truth, learnt = torch.zeros(1, 2, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool)
    flow = torch.tensor([[[[0.24, 8.99]], [[0.0, 0.0]]]], requires_grad=True)
    loss = training.sequence_loss([flow], truth, learnt, 0.8, 0.5)
    assert float(loss) == pytest.approx((0.5 + 3) / 2)  # square roots of 0.25 and 9
    loss.backward()
    assert flow.grad[0, 0, 0].tolist() == pytest.approx([0.5 / 0.5 / 2, 0.5 / 3 / 2])
    exact = torch.zeros_like(truth, requires_grad=True)
    training.sequence_loss([exact], truth, learnt, 0.8, 0.5).backward()
    assert bool(exact.grad.isfinite().all())


def test_without_updates_only_the_features_learn(config):
    phase = dataclasses.replace(config.phases[0], num_updates=0, matching=1.0)
    trainer = Trainer(dataclasses.replace(config, phases=(phase,)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    entry = trainer.advance()
    assert entry["matching"] > 0
    changed = {
        name.split(".")[0]
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"fnet"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_that_run_ahead_leave_no_gradient_and_those_after_them_do(config, precision):
    phase = dataclasses.replace(config.phases[1], num_updates=1, lead_updates=3, matching=0.0)
    trainer = Trainer(
        dataclasses.replace(
            config, precision=precision, phases=(dataclasses.replace(phase, steps=8),)
        )
    )
    assert trainer._lead(phase) == 0  # every other step starts at the start
    trainer.step = 1
    assert trainer._lead(phase) > 0
    trainer._loss(trainer.source.batch(trainer.step, phase), phase)[0].backward()
    # weights that autocast converted while no gradient was kept must not serve after it
    without = [
        name
        for name, value in trainer.model.named_parameters()
        if value.grad is None and "pos_emb" not in name
    ]
    assert not without


def test_muon_moves_every_direction_of_a_kernel_alike_by_steps_as_large_as_adamw():
    torch.manual_seed(0)
    # one direction's gradient is fifty times the others'
    gradient = torch.randn(32, 16, 3, 3) * 1e-12
    gradient[0] *= 50
    kernels = {name: torch.nn.Parameter(torch.zeros(32, 16, 3, 3)) for name in ("muon", "adamw")}
    optimisers = {
        "muon": KernelMuon([kernels["muon"]], weight_decay=0.0),
        "adamw": torch.optim.AdamW([kernels["adamw"]], eps=1e-30),
    }
    for name, optimiser in optimisers.items():
        optimiser.param_groups[0]["lr"] = 1e-3
        kernels[name].grad = gradient.clone()
        optimiser.step()
    stretches, before = (
        torch.linalg.svdvals(values.detach().flatten(1)) for values in (kernels["muon"], gradient)
    )
    assert before[0] > 20 * before[1]  # what it is there for
    assert stretches.max() < 3 * stretches.min()
    sizes = {
        name: kernel.detach().square().mean().sqrt().item() for name, kernel in kernels.items()
    }
    assert sizes["adamw"] == pytest.approx(
        1e-3, rel=0.01
    )  # the very first step, when every number's mean is its own
    assert sizes["muon"] == pytest.approx(
        0.2e-3, rel=0.2
    )  # the size that AdamW's steps have later on


def test_every_parameter_is_moved_by_one_optimiser(config):
    trainer = Trainer(dataclasses.replace(config, optimiser="muon", phases=config.phases[1:]))
    kernels = {values.data_ptr() for values in trainer.optimisers[0].matrices}
    others = {
        values.data_ptr()
        for group in trainer.optimisers[1].param_groups
        for values in group["params"]
    }
    everything = {values.data_ptr(): name for name, values in trainer.model.named_parameters()}
    assert not kernels & others
    assert kernels | others == set(everything)
    assert "update_block.flow_head.conv2.weight" in {
        everything[place] for place in others
    }  # two rows are no matrix
    assert "update_block.gru.convq1.weight" in {everything[place] for place in kernels}
    before = {name: values.detach().clone() for name, values in trainer.model.named_parameters()}
    trainer.advance()
    moved = {
        name
        for name, values in trainer.model.named_parameters()
        if not torch.equal(values, before[name])
    }
    # the published network has positions that it does not use, and attention whose share (gamma)
    # starts at 0
    still = {
        name
        for name in before
        if "pos_emb" in name or name.endswith(("to_qk.weight", "to_v.weight"))
    }
    assert moved == set(before) - still


# --- runs that survive ----------------------------------------------------------------------------


def _command(config_file: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gma_lib.training.trainer",
        "--config",
        str(config_file),
        "--out",
        str(folder),
        "--device",
        "cpu",
        *more,
    ]


def _losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "log.jsonl")[0]]


def test_a_killed_run_resumes_on_the_same_curve(tmp_path):
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(
        yaml.safe_dump(TINY | {"optimiser": "muon"})
    )  # which has AdamW beside it
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    where = {"cwd": PROJECT, "env": environment, "stdout": subprocess.DEVNULL}
    whole = subprocess.Popen(_command(config_file, tmp_path / "whole"), **where)
    killed = subprocess.Popen(_command(config_file, tmp_path / "killed"), **where)
    log, deadline = tmp_path / "killed" / "log.jsonl", time.monotonic() + 100
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert whole.wait(timeout=100) == 0
    if not (tmp_path / "killed" / "checkpoint.pt").exists():
        pytest.fail("no checkpoint was written before the kill")
    subprocess.run(
        _command(config_file, tmp_path / "killed", "--resume"), check=True, timeout=100, **where
    )
    assert len(_losses(tmp_path / "whole")) == 4
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
    config, tmp_path, monkeypatch, small_validation
):
    original, calls = training.sequence_loss, []

    def failing(*arguments):
        calls.append(None)
        return original(*arguments) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(training, "sequence_loss", failing)
    with pytest.raises(TrainingDivergedError, match=r"step 1 \(first\): the loss is nan"):
        train(config, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 1
    assert all(
        torch.isfinite(value).all()
        for value in state["model"].values()
        if value.is_floating_point()
    )


def test_a_finished_run_leaves_weights_and_curves(config, tmp_path, small_validation):
    short = dataclasses.replace(config, phases=(dataclasses.replace(config.phases[0], steps=1),))
    trainer = train(short, tmp_path)
    assert trainer.step == 1
    steps, validations = read_log(tmp_path / "log.jsonl")
    assert [entry["step"] for entry in steps] == [1]
    assert held_out_epe(validations[0]) > 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert plot_curves(tmp_path / "log.jsonl").axes[0].get_ylabel() == "EPE (px)"
    with pytest.raises(FileExistsError, match="resume, or name another folder"):
        train(short, tmp_path)
    warm = Trainer(short, weights=tmp_path / "best.safetensors")
    for name, value in warm.model.state_dict().items():
        assert torch.equal(value, trainer.averaged[name]), name
    other = dataclasses.replace(
        short, clip=2.0, phases=(dataclasses.replace(short.phases[0], num_updates=3),)
    )
    with pytest.raises(ValueError, match=r"differs in clip, phases\[0\].num_updates"):
        train(other, tmp_path, resume=True)


def test_scores_are_of_the_scenes_after_those_of_validation(
    config, tmp_path, monkeypatch, capsys, small_validation
):
    monkeypatch.setattr(training, "TEST_PAIRS", 2)
    monkeypatch.setattr(training, "SCORED_UPDATES", (1, 2))
    (file := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(
        sys, "argv", ["training", "--config", str(file), "--score", "seeded", "--device", "cpu"]
    )
    training.main()
    printed = capsys.readouterr()
    scores = json.loads(printed.out)  # JSON alone: progress goes beside it
    assert "planes: 2/2 pairs" in printed.err
    validation = training.validation_families(config, PairSource(config))
    test = training.validation_families(config, PairSource(config), numbers=range(1, 3))
    for family, pairs in test.items():
        assert set(scores[family]) == {"1", "2", "dis"}
        assert (
            scores[family]["dis"]["all"]
            == training.score(training.classical_flows, pairs)["dis"]["all"].described()
        )
        assert not any(
            torch.equal(pair.image1, known.image1) for pair in pairs for known in validation[family]
        )


def test_curves_can_be_drawn_before_any_flow_is_learnt(tmp_path):
    (log := tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 1, "loss": 1.0, "zero_epe": 2.0}) + "\n"
    )
    assert plot_curves(log).axes[0].get_lines() == []


def test_resuming_needs_a_checkpoint(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="leave out --resume"):
        train(config, tmp_path, resume=True)


# --- configuration --------------------------------------------------------------------------------


def test_the_shipped_configuration_is_fine():
    config = load_config(PROJECT / "params" / "train.yaml")
    assert config.steps > 0
    assert config.precision == "bfloat16"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "float8", "precision is one of bfloat16, float32, not 'float8'"),
        ("optimiser", "sgd", "optimiser is one of adamw, muon, not 'sgd'"),
        ("clip", 0.0, "clip is above 0"),
        ("clip", "one", "clip is of type float, not 'one'"),
        ("seed", 1.5, "seed is of type int, not 1.5"),
        ("seed", True, "seed is of type int, not True"),
        ("weight_decay", float("nan"), "finite number, not nan"),
        ("ema_decay", 1.5, "at most 1, not 1.5"),
        ("phases", [], "at least one phase"),
        ("photographs", -1, "photographs is at least 0, not -1"),
        ("momentum", 0.9, "unknown momentum"),
    ],
)
def test_impossible_values_are_refused_by_name(tmp_path, name, value, message):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(TINY | {name: value}))
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("height", 100, "100x128"),
        ("steps", 0, "steps is above 0, not 0"),
        ("photometric", 2.0, "photometric is between 0 and 1"),
        ("relief", -0.1, "relief is between 0 and 1, not -0.1"),
        ("dim", 1.5, "dim is between 0 and 1, not 1.5"),
        ("final_learning_rate", 1.0, "between 0 and learning_rate"),
        ("learn_occluded", "yes", "learn_occluded is of type bool"),
        ("max_displacement", 1.0, "above min_displacement"),
        ("matching", -1.0, "matching is at least 0"),
        ("loss_power", 0.0, "loss_power is above 0 and at most 1, not 0"),
        ("layers", [5, 2], "layers is two rising numbers"),
        ("layers", 5, "phase 1: layers is two whole numbers"),
        ("lr", 1.0, "phase 1: unknown lr"),
    ],
)
def test_impossible_phases_are_refused_by_name(name, value, message):
    content = copy.deepcopy(TINY)
    content["phases"][1][name] = value
    with pytest.raises(ValueError, match=message):
        config_from(content)


def test_a_missing_entry_is_named():
    content = {name: value for name, value in TINY.items() if name != "clip"}
    with pytest.raises(ValueError, match="missing clip"):
        config_from(content)


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


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
        + '{"step": 4, "lo'
    )
    training._cut_log(path, 2)
    assert [entry["step"] for entry in read_log(path)[0]] == [1, 2]
