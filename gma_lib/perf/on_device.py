"""Times on an Ascend card, as ``ais_bench`` measures them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gma_lib.ascend import ais_bench, atc
from gma_lib.ascend.chip import Card, NoChipFound, find_chips
from gma_lib.ascend.keep import described
from gma_lib.ascend.toolkit import find_toolkit, tool_environment
from gma_lib.backends.ascend import AscendBackend, AscendOptions
from gma_lib.runs.progress import log_elapsed
from gma_lib.runs.run import DoesNotFit


def measure_on_card(
    model_folder: Path, precision: str, batch_size: int, card: Card, *, loop: int = 100
) -> dict[str, Any]:
    """Fields of ``perf.json``: the tool's own loop on zeros, after a warm-up, and what transfers
    add; memory that runs out is a status.

    ``seconds`` holds the time of every call.
    """
    om = Path(model_folder) / "gma.om"
    manifest = atc.read_manifest(om)
    nothing = {"simulated": bool(manifest and manifest["simulated"]), "at_once": None}
    if manifest is None:
        return nothing | {"status": "failed", "reason": "there is no gma.om: run 03_convert first"}
    nothing["predicted_bytes"] = atc.ModelMemory(**manifest["memory"]).total_bytes
    try:
        chips = find_chips(environment=tool_environment(find_toolkit()))
        atc.require_device_memory(manifest, chips[0].memory_bytes, batch_size)
    except NoChipFound:
        pass  # ais_bench will say
    except DoesNotFit as error:
        return nothing | {"status": "out_of_memory", "reason": f"not started: {error}"}
    try:
        with AscendBackend(om, AscendOptions(precision, card)) as backend:
            watch = partial(log_elapsed, label=f"ais_bench, {loop} calls")
            timing = ais_bench.measure(
                backend.tool, om, batch_size=batch_size, loop=loop, watch=watch
            )
    except DoesNotFit as error:
        return nothing | {"status": "out_of_memory", "reason": str(error)}
    seconds = [milliseconds / 1000 for milliseconds in timing.compute_ms]
    with_transfers = float(np.mean(timing.compute_ms)) + timing.h2d_ms + timing.d2h_ms
    return nothing | {
        "seconds": seconds,
        "status": "ok",
        "reason": "",
        "simulated": nothing["simulated"] or timing.simulated,
        "pairs_per_second": timing.throughput,
        "pairs_per_second_with_transfers": 1000 * batch_size / with_transfers,
        "h2d_ms": timing.h2d_ms,
        "d2h_ms": timing.d2h_ms,
        "precision_read_back": f"{precision}, float32 kept for {described(manifest['options']['keep_dtype']) or 'everything'}",
        "device": backend.device,
        "share_of_peak": None,
    }
