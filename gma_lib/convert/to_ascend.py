"""From ONNX to the ``.om`` of an Ascend card."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from gma_lib.ascend import atc
from gma_lib.ascend.chip import find_chips
from gma_lib.ascend.keep import keep_lines
from gma_lib.ascend.operators import check_operators, refuse_impossible
from gma_lib.ascend.toolkit import find_toolkit, tool_environment
from gma_lib.runs.precisions import PRECISION_NAMES, refuse_precision
from gma_lib.runs.progress import log_elapsed


def convert_for_card(folder: Path, precision: str) -> dict[str, Any]:
    """Make ``gma.om`` from ``gma.onnx`` for the card that is found, or named by GMA_SOC; the
    manifest of ``gma_lib.ascend.atc``.

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
    chip = find_chips(
        word=os.environ.get("GMA_SOC") or None,
        python=os.environ.get("GMA_AIS_PYTHON") or "python3",
        environment=environment,
    )[0]
    source, target = Path(folder) / "gma_atc.onnx", Path(folder) / "gma.om"
    cann = toolkit.version if toolkit else None
    verdicts = check_operators(source, cann)
    refuse_impossible(verdicts)
    manifest = atc.convert_to_om(
        source,
        target,
        choose_options(chip.soc, precision, source),
        cann=cann,
        environment=environment,
        watch=partial(log_elapsed, label="atc"),
    )
    atc.require_device_memory(manifest, chip.memory_bytes, atc.input_shapes(source)["image1"][0])
    return manifest | {
        "unknown_operators": [verdict.what for verdict in verdicts if verdict.word == "unknown"],
        "chip_source": chip.source,
    }


def choose_options(soc: str, precision: str, source: Path) -> atc.AtcOptions:
    """What atc is told for a precision: for float16 the guide's flags, keeping in float32 what
    GMA_KEEP says (``gma_lib.ascend.keep``).
    """
    mode = PRECISION_NAMES["atc"][precision]
    choice = os.environ.get("GMA_KEEP") or "guide"
    return atc.AtcOptions(
        soc, precision_mode=mode, keep_dtype=keep_lines(source, choice) if mode is None else ()
    )
