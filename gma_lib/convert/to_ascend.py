"""From ONNX to the ``.om`` of an Ascend card."""

import shlex
from functools import partial
from pathlib import Path

from gma_lib.ascend import (
    Card,
    atc,
    brought_back,
    check_operators,
    choose_chip,
    choose_options,
    describe_kept,
    find_chips,
    find_toolkit,
    load_tool_environment,
    refuse_impossible,
    rewrite_where_needed,
)
from gma_lib.backends import AscendOptions
from gma_lib.convert.converted import Conversion
from gma_lib.runs import Record, hash_file, log_elapsed, shorten_path


def convert_to_ascend(folder: Path, precision: str, card: Card) -> Conversion:
    """Write ``gma_atc.onnx``, without 64-bit numbers, then ``gma.om`` with atc.

    The precision is decided here, not when the model is loaded. Of a dry run, only its manifest is
    written.
    """
    if card.dry_run:
        return _take_over(folder, Path(card.dry_run), card)
    rewritten = rewrite_where_needed(folder / "gma.onnx", folder / "gma_atc.onnx")
    made = compile_for_card(folder, precision, card)
    kept = describe_kept(made["options"]["keep_dtype"]) or "everything"
    changes = (
        f"{rewritten} Computed in {precision}, float32 kept for {kept}, for {made['soc']} "
        f"({made['chip_source']})."
    )
    if made["unknown_operators"]:
        unknown = ", ".join(made["unknown_operators"])
        cann = made["cann"] or "(version unknown)"
        changes += f" Not known whether CANN {cann} has: {unknown}."
    if made["simulated"]:
        changes = f"SIMULATED: a stand-in for atc made this. {changes}"
    return Conversion((folder / "gma.om",), shlex.join(made["command"]), changes)


def _take_over(folder: Path, dry_run: Path, card: Card) -> Conversion:
    """Write the manifest of what a dry run's folder brought back."""
    batch_size = atc.read_input_shapes(folder / "gma.onnx")["image1"][0]
    made = brought_back.read_brought_back(dry_run, batch_size).manifest
    if made["source_sha256"] != hash_file(folder / "gma.onnx"):
        raise ValueError(
            f"{shorten_path(dry_run)} was made from another gma.onnx than 02_export left: run "
            "make ascend-dry-run and run.sh again"
        )
    card.require_made_for(made["soc"], made["keep"], made["options"]["precision_mode_v2"])
    (folder / "gma.om").unlink(missing_ok=True)
    changes = "Compiled, run and timed on another machine, from the folder of a dry run."
    if made["simulated"]:
        changes = f"SIMULATED: stand-ins for the tools made this. {changes}"
    manifest = atc.write_manifest(folder / "gma.om", made)
    return Conversion((manifest,), shlex.join(made["command"]), changes)


def compile_for_card(folder: Path, precision: str, card: Card) -> Record:
    """Make ``gma.om`` from ``gma_atc.onnx`` for a card; return the manifest of ``atc``.

    Raises
    ------
    DoesNotFit
        When ``atc --mode=6`` says that the model needs more memory than the card has.
    """
    AscendOptions(precision).require()
    toolkit = find_toolkit()
    environment = load_tool_environment(toolkit)
    python = card.ais_python or "python3"
    chips = find_chips(word=card.soc, python=python, environment=environment)
    chip = choose_chip(chips, card.device)
    source, target = Path(folder) / "gma_atc.onnx", Path(folder) / "gma.om"
    cann = toolkit.version if toolkit else None
    operators = check_operators(source, cann)
    refuse_impossible(operators)
    manifest = atc.convert_to_om(
        source,
        target,
        choose_options(chip.soc, precision, source, card.keep, card.precision_mode_v2),
        cann=cann,
        environment=environment,
        watch=partial(log_elapsed, label="atc"),
    )
    atc.require_device_memory(
        manifest, chip.memory_bytes, atc.read_input_shapes(source)["image1"][0]
    )
    return manifest | {
        "unknown_operators": [one.what for one in operators if one.word == "unknown"],
        "chip_source": chip.source,
    }
