"""From ONNX to the ``.om`` of an Ascend card."""

import shlex
from functools import partial
from pathlib import Path

from gma_lib.ascend import (
    Card,
    atc,
    check_operators,
    describe_kept,
    find_chips,
    find_toolkit,
    load_tool_environment,
    read_keep_lines,
    refuse_impossible,
    rewrite_where_needed,
)
from gma_lib.convert.conversion import Conversion
from gma_lib.runs import PRECISION_NAMES, Record, log_elapsed, refuse_precision


def convert_to_ascend(folder: Path, precision: str, card: Card) -> Conversion:
    """Write ``gma_atc.onnx``, without 64-bit numbers, then ``gma.om`` with atc.

    The precision is decided here, not when the model is loaded.
    """
    # a batch of a card's size would need a card's memory to be compared in
    rewritten = rewrite_where_needed(folder / "gma.onnx", folder / "gma_atc.onnx", largest_batch=2)
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


def compile_for_card(folder: Path, precision: str, card: Card) -> Record:
    """Make ``gma.om`` from ``gma_atc.onnx`` for a card; return the manifest of ``atc``.

    Raises
    ------
    DoesNotFit
        When ``atc --mode=6`` says that the model needs more memory than the card has.
    """
    refuse_precision(
        "ascend",
        precision,
        tuple(PRECISION_NAMES["atc"]),
        "atc's precision modes are mapped for these",
    )
    toolkit = find_toolkit()
    environment = load_tool_environment(toolkit)
    python = card.ais_python or "python3"
    chip = find_chips(word=card.soc, python=python, environment=environment)[0]
    source, target = Path(folder) / "gma_atc.onnx", Path(folder) / "gma.om"
    cann = toolkit.version if toolkit else None
    verdicts = check_operators(source, cann)
    refuse_impossible(verdicts)
    manifest = atc.convert_to_om(
        source,
        target,
        choose_options(chip.soc, precision, source, keep=card.keep),
        cann=cann,
        environment=environment,
        watch=partial(log_elapsed, label="atc"),
    )
    atc.require_device_memory(
        manifest, chip.memory_bytes, atc.read_input_shapes(source)["image1"][0]
    )
    return manifest | {
        "unknown_operators": [verdict.what for verdict in verdicts if verdict.word == "unknown"],
        "chip_source": chip.source,
    }


def choose_options(
    soc: str, precision: str, source: Path, *, keep: str | None = None
) -> atc.AtcOptions:
    """Choose what atc is told for a precision: for float16 the guide's flags, with ``keep`` in
    float32 (a key of ``gma_lib.ascend.keep.CHOICES``; None: as in the guide).
    """
    mode = PRECISION_NAMES["atc"][precision]
    return atc.AtcOptions(
        soc,
        precision_mode=mode,
        keep_dtype=read_keep_lines(source, keep or "guide") if mode is None else (),
    )
