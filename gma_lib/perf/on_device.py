"""Times on an Ascend card, as ``ais_bench`` measures them."""

from functools import partial
from pathlib import Path

import numpy as np

from gma_lib.ascend import ais_bench, atc
from gma_lib.ascend.chip import Card, NoChipFound, find_chips
from gma_lib.ascend.keep import describe_kept
from gma_lib.ascend.toolkit import find_toolkit, load_tool_environment
from gma_lib.backends.ascend import AscendBackend, AscendOptions
from gma_lib.perf.results import summarize
from gma_lib.runs.progress import log_elapsed
from gma_lib.runs.records import Record
from gma_lib.runs.run import DoesNotFit


def measure_on_card(
    model_folder: Path, precision: str, batch_size: int, card: Card, *, loop: int = 100
) -> Record:
    """Measure a model with the tool's own loop on zeros, after a warm-up, and what transfers add;
    return fields of ``perf.json``. Running out of memory is a status.
    """
    om = Path(model_folder) / "gma.om"
    manifest = atc.read_manifest(om)
    about: Record = {"simulated": bool(manifest and manifest["simulated"]), "at_once": None}
    if manifest is None:
        return about | {"status": "failed", "reason": "there is no gma.om: run 03_convert first"}
    about["predicted_bytes"] = atc.ModelMemory(**manifest["memory"]).total_bytes
    try:
        _require_memory(manifest, batch_size)
    except DoesNotFit as error:
        return about | {"status": "out_of_memory", "reason": f"not started: {error}"}
    try:
        with AscendBackend(om, AscendOptions(precision, card)) as backend:
            watch = partial(log_elapsed, label=f"ais_bench, {loop} calls")
            timing = ais_bench.time_on_zeros(
                backend.tool, om, batch_size=batch_size, loop=loop, watch=watch
            )
    except DoesNotFit as error:
        return about | {"status": "out_of_memory", "reason": str(error)}
    with_transfers = float(np.mean(timing.compute_ms)) + timing.h2d_ms + timing.d2h_ms
    kept = describe_kept(manifest["options"]["keep_dtype"]) or "everything"
    seconds = [milliseconds / 1000 for milliseconds in timing.compute_ms]
    return (
        about
        | summarize(seconds, batch_size)
        | {
            "status": "ok",
            "reason": "",
            "simulated": about["simulated"] or timing.simulated,
            "pairs_per_second": timing.throughput,
            "pairs_per_second_with_transfers": 1000 * batch_size / with_transfers,
            "h2d_ms": timing.h2d_ms,
            "d2h_ms": timing.d2h_ms,
            "precision_read_back": f"{precision}, float32 kept for {kept}",
            "device": backend.device,
            "share_of_peak": None,
        }
    )


def _require_memory(manifest: Record, batch_size: int) -> None:
    """Raise DoesNotFit where the card that is found has too little; without one, the tool will
    say so.
    """
    try:
        chips = find_chips(environment=load_tool_environment(find_toolkit()))
    except NoChipFound:
        return
    atc.require_device_memory(manifest, chips[0].memory_bytes, batch_size)
