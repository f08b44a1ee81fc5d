"""Times on an Ascend card, as ``ais_bench`` measures them."""

from pathlib import Path

import numpy as np

from gma_lib import ascend, backends, runs
from gma_lib.perf.summary import summarize


def measure_on_card(
    model_folder: Path, precision: str, batch_size: int, card: ascend.Card
) -> runs.Record:
    """Measure a model with the tool's own loop on zeros, after a warm-up, and what transfers add;
    return fields of ``perf.json``. Running out of memory is a status.
    """
    om = Path(model_folder) / "gma.om"
    about: runs.Record = {"simulated": False, "at_once": None}
    manifest = None if card.dry_run else ascend.atc.read_manifest(om)
    if manifest:
        about["simulated"] = bool(manifest["simulated"])
        try:
            _require_memory(manifest, batch_size, card.device)
        except runs.DoesNotFit as error:
            return about | {
                "status": "out_of_memory",
                "reason": f"not started: {error}",
                "predicted_bytes": manifest["memory_bytes"],
            }
    elif not card.dry_run:
        return about | {"status": "failed", "reason": "there is no gma.om: run 03_convert first"}
    try:
        with backends.open_ascend(om, backends.AscendOptions(precision, card)) as backend:
            timing, manifest = backend.time_on_zeros(), backend.manifest
    except runs.DoesNotFit as error:
        if card.dry_run:
            about["simulated"] = ascend.brought_back.says_simulated(Path(card.dry_run), batch_size)
        return about | {"status": "out_of_memory", "reason": str(error)}
    with_transfers = float(np.mean(timing.compute_ms)) + timing.h2d_ms + timing.d2h_ms
    kept = ascend.describe_kept(manifest["options"]["keep_dtype"]) or "everything"
    seconds = [milliseconds / 1000 for milliseconds in timing.compute_ms]
    return (
        about
        | summarize(seconds, batch_size)
        | {
            "status": "ok",
            "reason": "",
            "simulated": about["simulated"] or timing.simulated,
            "predicted_bytes": manifest.get("memory_bytes"),
            "pairs_per_second": timing.throughput,
            "pairs_per_second_with_transfers": 1000 * batch_size / with_transfers,
            "h2d_ms": timing.h2d_ms,
            "d2h_ms": timing.d2h_ms,
            "precision_read_back": f"{precision}, float32 kept for {kept}",
            "device": backend.device,
            "share_of_peak": None,
        }
    )


def _require_memory(manifest: runs.Record, batch_size: int, device: int | None) -> None:
    """Raise DoesNotFit where the card that is found has too little; without one, the tool will
    say so.
    """
    if chips := ascend.list_chips(ascend.load_tool_environment(ascend.find_toolkit())):
        memory_bytes = ascend.choose_chip(chips, device).memory_bytes
        ascend.atc.require_device_memory(manifest, memory_bytes, batch_size)
