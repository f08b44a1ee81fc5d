"""Make weights by a recipe: its parts are trained or averaged one after the other.

A killed run goes on: finished parts are kept, and the one in training has its checkpoint.
"""

import importlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gma_lib import network, runs
from gma_lib.network.checkpoints import MOST_BYTES, SEED, decode_tensors
from gma_lib.runs.files import locate_path
from gma_lib.runs.machine import ask_git, find_commit, find_versions
from gma_lib.runs.processes import lock_path
from gma_lib.training.config import (
    Base,
    Part,
    Recipe,
    TrainingConfig,
    name_differences,
)
from gma_lib.training.pairs import require_other_seed
from gma_lib.training.trainer import NEW_RUN, read_log, train

logger = logging.getLogger(__name__)
RECORDS = "recipe.json"
BEGUN = "begun.json"  # in the folder of a part: from what, and by which processes
CURVE_STEPS = 50


def run_recipe(recipe: Recipe, folder: Path, *, device: str = "cpu") -> Path:
    """Make the weights of a recipe, or go on with it, and return their file.

    Writes into ``folder``: a folder for each part, ``recipe.json`` (the recipe, a record of each
    finished part and the SHA-256 of the result) and ``weights.safetensors`` (the result in
    float16). The file is the same bit for bit, killed and resumed or not, on the same processor
    with the same versions and as many threads; each part's record names all of them, and under
    ``earlier`` those of earlier processes that differed, with their share of the part's minutes.
    Logs whether the file is the one whose SHA-256 the recipe names, if it names one.

    Parameters
    ----------
    folder
        A relative path starts at the current folder.

    Raises
    ------
    ValueError, OSError
        Before any work: the folder holds a run of another recipe, a part that would run has a seed
        of the held-out scenes, a base is missing or another file, the disk is too full, or another
        process works in the folder. Before a part is resumed: it was begun from something else.
    """
    folder = Path(folder).absolute()  # else what is read again would be looked for in the project
    _require_feasible(recipe.needed, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_path(folder / ".recipe.lock", wait=False):
        return _make_parts(recipe, folder, device)


def _make_parts(recipe: Recipe, folder: Path, device: str) -> Path:
    """Make the parts that are not made yet, and the result."""
    parts, records = recipe.needed, _read_records(folder / RECORDS, recipe)
    for number, part in enumerate(parts, 1):
        logger.info(f"{part.name} ({number} of {len(parts)}): {part.what}")
        if part.name not in records:
            records[part.name] = _make_part(part, recipe, folder, device)
            _write_records(folder, recipe, records)
        elif network.load_checkpoint(_locate(part, folder)).sha256 != records[part.name]["sha256"]:
            raise ValueError(
                f"{_locate(part, folder)} was changed since it was made: delete {folder}"
            )
    state = network.load_checkpoint(_locate(parts[-1], folder)).state
    stored = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
    result = network.save_checkpoint(folder / "weights.safetensors", stored)
    made = runs.hash_file(result)
    _write_records(folder, recipe, records, result=made)
    if recipe.sha256:
        other = f"differs from what shipped, SHA-256 {recipe.sha256}"
        logger.info(f"{result.name} {'is what shipped' if made == recipe.sha256 else other}")
    return result


def _write_records(folder: Path, recipe: Recipe, records: runs.Record, **more: str) -> None:
    content = {"recipe": recipe.list_settings(), "records": records}
    runs.write_json(folder / RECORDS, content | more)


def shorten_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe cut to a minute, to see that it runs: the same parts, a step of each phase
    on the smallest frames, and seeded weights in place of bases.
    """
    seeded = Base(file=network.SEEDED, sha256=runs.hash_value(["recipe", SEED]))
    return Recipe(
        parts=tuple(
            Part(name=part.name, what=part.what, base=seeded)
            if part.base
            else replace(part, training=part.training and _shorten(part.training))
            for part in recipe.needed
        )
    )


def _shorten(config: TrainingConfig) -> TrainingConfig:
    phases = (
        replace(
            phase,
            steps=1,
            height=128,
            width=128,
            batch_size=1,
            num_updates=1,
            lead_updates=1,
            matching=1.0,
        )
        for phase in config.phases
    )
    # bfloat16, in which Muon computes too, takes many minutes where the processor lacks it
    cut = replace(config, textures=4, photographs=0, validation_pairs=0, phases=tuple(phases))
    return replace(cut, precision="float32", optimiser="adamw")


def _read_records(path: Path, recipe: Recipe) -> dict[str, runs.Record]:
    """Records of the parts that an earlier run of the same recipe has finished."""
    if not path.is_file():
        return {}
    content = runs.read_json(path, made_by="gma train --recipe")
    differing = name_differences(content["recipe"], runs.make_plain(recipe.list_settings()))
    if differing:
        raise ValueError(
            f"{path}: made with a recipe that differs in {', '.join(differing)}; restore it, or "
            "name another folder"
        )
    return dict(content["records"])


def _require_feasible(parts: list[Part], folder: Path) -> None:
    """Raise before hours of work what would stop them."""
    trained = [(part.name, part.training) for part in parts if part.training and not part.base]
    for name, training in trained:
        try:
            require_other_seed(training)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if any(training.photographs for _, training in trained):
        importlib.import_module("skimage")
    if any(training.optimiser == "muon" for _, training in trained):
        importlib.import_module("gma_lib.training.muon")
    for part in parts:
        if part.base:
            _require_base(part.name, part.base)
    runs.require_free_space(folder, 150_000_000 * len(parts))


def _require_base(name: str, base: Base) -> None:
    """Raise unless a base is the file that is meant; where it is missing, ask git for it."""
    path, advice = locate_path(base.file), ""
    if base.revision and not path.exists():
        advice = f", as `git show {base.revision}` writes it in a clone with the whole history"
        if content := ask_git("show", base.revision):
            with runs.write_atomically(path) as partial:
                partial.write_bytes(content)
    try:
        found = network.load_checkpoint(base.file).sha256
    except FileNotFoundError:
        found = "no such file"
    if found != base.sha256:
        raise runs.BadFile(
            path,
            found if " " in found else f"SHA-256 {found}",
            f"the base of {name}, SHA-256 {base.sha256}",
            f"Put that file there{advice}",
        )


def _locate(part: Part, folder: Path) -> str:
    """What loads the weights of a part."""
    return part.base.file if part.base else str(folder / part.name / "averaged.safetensors")


def _make_part(part: Part, recipe: Recipe, folder: Path, device: str) -> runs.Record:
    """Train, average or read a part and return its record."""
    files = {one.name: _locate(one, folder) for one in recipe.parts}
    record: runs.Record = {
        "commit": find_commit(),
        "processor": runs.find_processor(),
        "versions": find_versions(),
        "threads": torch.get_num_threads(),
    }
    if part.training and not part.base:
        record |= _train_part(part, part.training, files, record | {"device": device})
    elif part.mean and not part.base:
        states = {name: network.load_checkpoint(files[name]).state for name in part.mean}
        network.save_checkpoint(Path(files[part.name]), _average_states(states, part.mean))
    return record | {"sha256": network.load_checkpoint(files[part.name]).sha256}


def _train_part(
    part: Part, training: TrainingConfig, files: dict[str, str], here: runs.Record
) -> runs.Record:
    """Train a part, or go on with it, and return what its record says about that.

    Parameters
    ----------
    files
        Part -> its weights.
    here
        What this process computes with.
    """
    place = Path(files[part.name]).parent
    start = files[part.start] if part.start else None
    earlier = _begin(part, place, start, here)
    if start and part.only:
        kept = network.load_checkpoint(start).state
        torch.manual_seed(training.seed)
        drawn = {
            name: kept[name] if name.startswith(f"{part.only}.") else one
            for name, one in network.GMA().state_dict().items()
        }
        start = str(network.save_checkpoint(place / "start.safetensors", drawn))
    resume = (place / "checkpoint.pt").exists()
    trainer = train(training, place, resume=resume, weights=start, device=here["device"])
    return {
        "device": here["device"],
        "minutes": round(trainer.seconds / 60, 1),
        "curve": list(_summarise_log(place / "log.jsonl")),
    } | ({"earlier": earlier} if earlier else {})


def _begin(part: Part, place: Path, start: str | None, here: runs.Record) -> list[runs.Record]:
    """Note what a part starts from and what computes it; return what computed it before, where
    that differs, with minutes.

    Raises
    ------
    ValueError
        Its checkpoint is that of a part that was begun otherwise.
    """
    path, checkpoint = place / BEGUN, place / "checkpoint.pt"
    wanted: runs.Record = {
        "part": runs.make_plain(asdict(part)),
        "start": network.load_checkpoint(start).sha256 if start else None,
    }
    processes: list[runs.Record] = []  # each with the seconds of those before it
    seconds = 0.0
    if checkpoint.exists():
        seconds = read_seconds(checkpoint)
        found = runs.read_json(path, made_by="gma train --recipe") if path.is_file() else {}
        noted = {name: found.get(name) for name in wanted}
        if differing := name_differences(noted, wanted):
            raise ValueError(
                f"{place}: begun otherwise than the recipe says now, by {', '.join(differing)}: "
                "restore the recipe, or delete that folder"
            )
        processes = found["processes"]
    processes.append(here | {"after_s": seconds})
    runs.write_json(path, wanted | {"processes": processes})
    return list(_share_minutes(processes, here))


def read_seconds(path: Path) -> float:
    """Seconds that a checkpoint's training has computed; BadFile where it does not say."""
    with runs.reading(path, "the checkpoint of a training", NEW_RUN) as path:
        state = decode_tensors(runs.read_whole(path, largest=MOST_BYTES), path.suffix)
        return float(cast(runs.Record, state)["seconds"])


def _share_minutes(processes: list[runs.Record], here: runs.Record) -> Iterator[runs.Record]:
    """Yield what other computers than this one there were, with the minutes of each."""
    for one, after in pairwise(processes):
        computer = {name: value for name, value in one.items() if name != "after_s"}
        if computer != here:
            yield computer | {"minutes": round((after["after_s"] - one["after_s"]) / 60, 1)}


def _average_states(
    states: dict[str, dict[str, Tensor]], factors: dict[str, float]
) -> dict[str, Tensor]:
    """The weighted mean of weights; counters are those of the first."""
    mean = dict(next(iter(states.values())))
    for name in (name for name, one in mean.items() if one.is_floating_point()):
        parts = [factors[part] * state[name].double() for part, state in states.items()]
        mean[name] = torch.stack(parts).sum(dim=0).float()
    return mean


def _summarise_log(path: Path) -> Iterator[runs.Record]:
    """Yield the mean errors of every 50 steps, as the card's figure shows them."""
    steps = [entry for entry in read_log(path)[0] if "epe" in entry]
    for (phase, _), group in groupby(
        steps, key=lambda entry: (entry["phase"], (entry["step"] - 1) // CURVE_STEPS)
    ):
        entries = list(group)
        epe, zero = (
            round(sum(entry[name] for entry in entries) / len(entries), 2)
            for name in ("epe", "zero_epe")
        )
        span = f"{entries[0]['step']}-{entries[-1]['step']}"
        yield {"steps": span, "phase": phase, "epe": epe, "zero_flow_epe": zero}
