"""Training: steps, and runs that survive."""

import dataclasses
import io
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

from gma_lib.network.checkpoints import make_seeded_weights, save_checkpoint
from gma_lib.runs.files import PROJECT, BadFile
from gma_lib.runs.machine import has_bf16
from gma_lib.runs.processes import lock_path
from gma_lib.training import trainer
from gma_lib.training.pairs import HELD_OUT_SEED
from gma_lib.training.trainer import (
    Trainer,
    TrainingDivergedError,
    cut_log,
    held_out_epe,
    plot_log,
    read_log,
    train,
)

pytestmark = pytest.mark.slow


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


def test_training_does_not_go_on_from_weights_for_another_attention(config, tmp_path):
    about = {"attention": "position"}
    file = save_checkpoint(tmp_path / "a.safetensors", make_seeded_weights(), metadata=about)
    with pytest.raises(BadFile, match=r"position.*content"):
        Trainer(config, weights=file)


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


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)]
)
def test_updates_that_run_ahead_leave_no_gradient_and_those_after_them_do(config, precision):
    phase = dataclasses.replace(config.phases[1], num_updates=1, lead_updates=3, matching=0.0)
    trainer = Trainer(
        dataclasses.replace(
            config, precision=precision, phases=(dataclasses.replace(phase, steps=8),)
        )
    )
    for encoder in (trainer.model.fnet, trainer.model.cnet):  # slow where bfloat16 is emulated
        encoder.forward = torch.autocast("cpu", enabled=False)(encoder.forward)
    assert trainer._draw_lead(phase) == 0  # every other step starts at the start
    trainer.step = 1
    assert trainer._draw_lead(phase) > 0
    trainer._compute_loss(trainer.source.render_batch(trainer.step, phase), phase)[0].backward()
    # weights that autocast converted while no gradient was kept must not serve after it
    without = [
        name
        for name, value in trainer.model.named_parameters()
        if value.grad is None and "pos_emb" not in name
    ]
    assert not without


def _command(config_file: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gma_lib.cli",
        "train",
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


@pytest.mark.exhaustive
def test_a_killed_run_resumes_on_the_same_curve(tmp_path, tiny):
    config_file = tmp_path / "tiny.yaml"
    # Muon also uses AdamW, so it covers both, but takes minutes where bfloat16 is emulated
    optimiser = "muon" if has_bf16() else "adamw"
    config_file.write_text(yaml.safe_dump(tiny | {"optimiser": optimiser}))
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
    original, calls = trainer.sequence_loss, []

    def failing(*arguments):
        calls.append(None)
        return original(*arguments) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(trainer, "sequence_loss", failing)
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
    assert plot_log(tmp_path / "log.jsonl").axes[0].get_ylabel() == "EPE (px)"
    with pytest.raises(FileExistsError, match="resume, or name another folder"):
        train(short, tmp_path)
    warm = Trainer(short, weights=tmp_path / "best.safetensors")
    for name, value in warm.model.state_dict().items():
        assert torch.equal(value, trainer.averaged.module.state_dict()[name]), name
    other = dataclasses.replace(
        short, clip=2.0, phases=(dataclasses.replace(short.phases[0], num_updates=3),)
    )
    with pytest.raises(ValueError, match=r"differs in clip, phases\[0\].num_updates"):
        train(other, tmp_path, resume=True)


def test_averaged_weights_follow_at_first_and_settle_later(config):
    run = Trainer(config)  # whose ema_decay is 0.9
    values = run.model.state_dict()["update_block.gru.convq1.weight"]
    averaged = run.averaged.module.state_dict()["update_block.gru.convq1.weight"]
    expected = values.clone()
    assert torch.equal(averaged, expected)
    values += 5
    for count, decay in ((1, 1 / 10), (2, 2 / 11), (3, 3 / 12), (10_000, 0.9)):
        run.averaged.n_averaged.fill_(count)
        run.averaged.update_parameters(run.model)
        expected = decay * expected + (1 - decay) * values
        torch.testing.assert_close(averaged, expected)


def test_what_died_before_its_first_step_is_resumed_and_not_mixed_with_another_run(
    config, tmp_path, monkeypatch, small_validation
):
    rare = dataclasses.replace(config, checkpoint_minutes=1e6, validate_every=1)
    monkeypatch.setattr(Trainer, "advance", _fail)
    with pytest.raises(InterruptedError):
        train(rare, tmp_path, weights="seeded")
    with pytest.raises(FileExistsError, match="resume, or name another folder"):
        train(rare, tmp_path)
    resumed = Trainer(rare)
    resumed.resume(tmp_path / "checkpoint.pt")
    gamma = "update_block.aggregator.gamma"
    assert torch.equal(resumed.model.state_dict()[gamma], make_seeded_weights()[gamma])


def _fail(_):
    raise InterruptedError


@pytest.mark.parametrize("name", ["log.jsonl", "averaged.safetensors", "best.safetensors"])
def test_no_run_starts_among_results_of_another(name, config, tmp_path):
    (tmp_path / name).write_bytes(b"of another run")
    with pytest.raises(FileExistsError, match=name):
        train(config, tmp_path)
    assert (tmp_path / name).read_bytes() == b"of another run"


@pytest.mark.parametrize("resume", [False, True])
def test_one_process_trains_in_a_folder(resume, config, tmp_path):
    if resume:
        Trainer(config).save(tmp_path / "checkpoint.pt")
    with lock_path(tmp_path / ".lock"), pytest.raises(ValueError, match="another process"):
        train(config, tmp_path, resume=resume)
    assert not (tmp_path / "log.jsonl").exists()


def _flip_bit_of_a_weight(content: bytes) -> bytes:
    place = content.index(b"/data/9") + 1000  # in the middle of some kernel
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


def _pack(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        _flip_bit_of_a_weight,
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"step: 1\n",
        lambda content: _pack({"weights": torch.ones(2)}),
        lambda content: _pack([torch.ones(2)]),
    ],
    ids=["one-bit", "half", "empty", "text", "weights", "list"],
)
def test_a_damaged_checkpoint_is_not_resumed(spoil, config, tmp_path):
    run, path = Trainer(config), tmp_path / "checkpoint.pt"
    run.save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadFile, match=r"checkpoint\.pt"):
        run.resume(path)


@pytest.mark.parametrize("seed", [HELD_OUT_SEED, HELD_OUT_SEED + 1])
def test_no_training_has_the_seed_of_held_out_scenes(seed, config, tmp_path):
    """It would learn their textures and outlines."""
    with pytest.raises(ValueError, match=f"seed {seed}"):
        train(dataclasses.replace(config, seed=seed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epe", [1e-9, 1e9], ids=["better", "worse"])
def test_a_resumed_run_keeps_the_best_weights_of_all(config, tmp_path, small_validation, epe):
    phase = dataclasses.replace(config.phases[0], steps=1)
    config = dataclasses.replace(config, phases=(phase,))
    Trainer(config).save(tmp_path / "checkpoint.pt")
    found = {family: {"all": {"epe": epe}} for family in ("layers", "planes")}
    line = {"step": 0, "validation": found}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    train(config, tmp_path, resume=True)
    assert (tmp_path / "best.safetensors").exists() is (epe > 1)
    curves = plot_log(tmp_path / "log.jsonl").axes[0].get_lines()
    drawn = [len(line.get_xdata()) for line in curves if "held out" in line.get_label()]
    assert drawn == [2, 2]


def test_the_best_weights_are_kept_with_a_checkpoint(
    config, tmp_path, monkeypatch, small_validation
):
    """Regression: a run killed before the next checkpoint lost the line of its best weights."""
    original, calls = trainer.sequence_loss, []

    def failing(*arguments):
        calls.append(None)
        return original(*arguments) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(trainer, "sequence_loss", failing)
    rare = dataclasses.replace(config, validate_every=1, checkpoint_minutes=1e6)
    with pytest.raises(TrainingDivergedError, match="step 1"):
        train(rare, tmp_path)
    assert (tmp_path / "best.safetensors").exists()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1


def test_an_error_that_is_not_of_the_disk_is_not_taken_for_one(config, tmp_path, monkeypatch):
    run, path = Trainer(config), tmp_path / "checkpoint.pt"
    run.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="CUDA"):
        run.save(path)
    assert path.read_bytes() == before


def test_resuming_needs_a_checkpoint(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="leave out --resume"):
        train(config, tmp_path, resume=True)


def test_curves_can_be_drawn_before_any_flow_is_learnt(tmp_path):
    (log := tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 1, "loss": 1.0, "zero_epe": 2.0}) + "\n"
    )
    assert plot_log(log).axes[0].get_lines() == []


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
        + '{"step": 4, "lo'
    )
    cut_log(path, 2)
    assert [entry["step"] for entry in read_log(path)[0]] == [1, 2]


@pytest.mark.parametrize("damaged", ["[2]", "{}", '{"step": nu', "\x00"])
def test_a_log_is_cut_at_a_damaged_line_only_where_the_run_was_killed(damaged, tmp_path):
    path, lines = tmp_path / "log.jsonl", ['{"step": 1, "loss": 1.0}', damaged]
    path.write_text("\n".join(lines))
    cut_log(path, 3)
    assert [entry["step"] for entry in read_log(path)[0]] == [1]
    path.write_text("\n".join([*lines, '{"step": 3, "loss": 1.0}\n']))
    with pytest.raises(BadFile, match="line 2"):
        cut_log(path, 3)
