"""From ONNX to the ``.om`` of an Ascend card."""

from functools import partial
from pathlib import Path
from typing import Any

from gma_lib.ascend import atc
from gma_lib.ascend.chip import Card, find_chips
from gma_lib.ascend.keep import keep_lines
from gma_lib.ascend.operators import check_operators, refuse_impossible
from gma_lib.ascend.toolkit import find_toolkit, tool_environment
from gma_lib.runs.precisions import PRECISION_NAMES, refuse_precision
from gma_lib.runs.progress import log_elapsed


def convert_for_card(folder: Path, precision: str, card: Card) -> dict[str, Any]:
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
    environment = tool_environment(toolkit)
    chip = find_chips(word=card.soc, python=card.ais_python or "python3", environment=environment)[
        0
    ]
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
    atc.require_device_memory(manifest, chip.memory_bytes, atc.input_shapes(source)["image1"][0])
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
        keep_dtype=keep_lines(source, keep or "guide") if mode is None else (),
    )
