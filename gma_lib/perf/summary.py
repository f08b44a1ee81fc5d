"""What a measurement says: median and p90 of its samples, their cautions, and the table that shows
them.
"""

from collections.abc import Sequence

import numpy as np

from gma_lib import network, runs
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND

PRECISION_RESULTS = runs.RESOURCES / "benchmarks" / "results" / "precision.json"
ROUNDS_THAT_MEAN_SOMETHING = 10
UNSTABLE_SPREAD = 0.05  # interquartile range by median
Row = tuple[str, str, str]  # what, this run, the guide's card


def summarize(samples_s: Sequence[float], batch_size: int) -> runs.Record:
    """Return median, 90th percentile, spread and throughput of the times of single calls."""
    quarter, median, three_quarters, p90 = np.percentile(samples_s, [25, 50, 75, 90])
    spread = (three_quarters - quarter) / median
    return {
        "median_s": float(median),
        "p90_s": float(p90),
        "spread": float(spread),
        "rounds": len(samples_s),
        "samples_s": [round(sample, 6) for sample in samples_s],
        "pairs_per_second": batch_size / float(median),
        "caution": _find_caution(len(samples_s), spread),
    }


def _find_caution(rounds: int, spread: float) -> str:
    parts = []
    if rounds < ROUNDS_THAT_MEAN_SOMETHING:
        parts.append(f"only {rounds} rounds: p90 means little; raise budget_s")
    if spread > UNSTABLE_SPREAD:
        parts.append(
            f"unstable: the middle half of the rounds spreads over {spread:.0%} of the median"
        )
    return "; ".join(parts)


def find_peak_memory(perf: runs.Record) -> int | None:
    """Return the peak of the memory that limits the batch size: the GPU's if one computes; None if
    no tool reports it.
    """
    return perf.get("peak_device_bytes") or perf.get("peak_rss_bytes")


def tabulate_measurement(perf: runs.Record) -> list[Row]:
    """Return the rows of one measurement."""
    guide = GUIDE_PAIRS_PER_SECOND.get(perf["batch_size"], "not published")
    rows = [("status", perf["status"], "out of memory" if guide is None else "ok")]
    if perf["status"] == "ok":
        share = perf["share_of_peak"]
        rows += [
            (
                "pairs per second, network alone",
                f"{perf['pairs_per_second']:.3f}",
                "" if guide is None else str(guide),
            ),
            ("seconds per call, median", f"{perf['median_s']:#.4g}", ""),
            ("seconds per call, 90th percentile", f"{perf['p90_s']:#.4g}", ""),
            ("middle half of the rounds, share of the median", f"{perf['spread']:.1%}", ""),
            ("rounds", str(perf["rounds"]), "100"),
            (
                "pairs computed at once",
                str(perf["at_once"] or perf["batch_size"]),
                str(perf["batch_size"]),
            ),
            ("precision, read back", perf["precision_read_back"], "float16, InstanceNorm float32"),
            *_tabulate_memory(perf),
            (
                "share of the matrix-product peak",
                _describe_share(share),
                "",
            ),
        ]
    if load := perf.get("load"):
        averages = f"{load['average_before']:.1f} / {load['average_after']:.1f}"
        others = f"{load['others_before']:.0%} / {load['others_during']:.0%}"
        rows += [
            (f"load average of the {load['cores']} cores, before / after", averages, ""),
            ("the cores' time that other processes took, before / during", others, ""),
        ]
    if perf["predicted_bytes"] is not None:
        rows.append(("predicted memory, GB", f"{perf['predicted_bytes'] / 1e9:.2f}", ""))
    return rows


def _describe_share(share: float | None) -> str:
    if share is None:
        return "not measured"
    return f"{share:.0%}" if share <= 1 else "not usable: the peak was measured on a busier machine"


def scale_parts(perf: runs.Record) -> dict[str, float]:
    """Seconds per pair by part: the parts' shares of the median call, since they were measured in
    calls of their own; empty where the runtime does not say where the time goes.
    """
    parts = perf.get("parts_s") or {}
    pair_s = perf["median_s"] / perf["batch_size"] if parts else 0.0
    return {name: pair_s * seconds / sum(parts.values()) for name, seconds in parts.items()}


def find_usable_peak(perf: runs.Record) -> float | None:
    """Return the machine's peak in operations a second; None if it was not measured, or on a
    machine so busy that the model was faster.
    """
    peak: float | None = perf.get("matrix_product_peak")
    return peak if (perf.get("share_of_peak") or 0) <= 1 else None


def describe_speed(perf: runs.Record) -> str:
    """Say how fast the model is and where its time goes; why, if nothing was timed."""
    if perf["status"] != "ok":
        return f"Nothing was timed: {perf['reason']}"
    memory, parts = find_peak_memory(perf), scale_parts(perf)
    said = f"{perf['pairs_per_second']:.2f} pairs/s: one call takes {perf['median_s']:#.3g} s"
    said += f" and at most {memory / 1e9:.1f} GB of memory." if memory else "."
    if parts:
        slowest = max(parts, key=parts.__getitem__)
        share = parts[slowest] / sum(parts.values())
        said += f" The slowest part is the {slowest}, with {share:.0%} of the time."
    return f"{said} Caution: {perf['caution']}." if perf["caution"] else said


def _tabulate_memory(perf: runs.Record) -> list[Row]:
    """Return the rows of memory and start here, or of the transfers to and from a card."""
    if "peak_rss_bytes" in perf:
        on_device = perf.get("peak_device_bytes")
        return [
            *([("peak memory of the GPU, GB", f"{on_device / 1e9:.2f}", "")] if on_device else []),
            ("peak memory, GB", f"{perf['peak_rss_bytes'] / 1e9:.2f}", ""),
            ("loading the model, s", f"{perf['load_s']:.2f}", ""),
            ("first call, s", f"{perf['first_call_s']:.2f}", ""),
        ]
    return [
        (
            "pairs per second with transfers to and from the card",
            f"{perf['pairs_per_second_with_transfers']:.3f}",
            "not published",
        ),
        (
            "to the card / back, ms per call",
            f"{perf['h2d_ms']:.2f} / {perf['d2h_ms']:.2f}",
            "not published",
        ),
    ]


def load_precisions() -> runs.Record:
    """Return what ``measure_precisions`` found for the package; nothing where it was not run."""
    if not PRECISION_RESULTS.is_file():
        return {}
    return runs.load_record(PRECISION_RESULTS, "results of make bench")


def advise_run(backend: str, exported: runs.Record) -> str:
    """As ``advise`` for a run whose backend, weights and updates (``export.json``) are those that
    were measured, with what this processor lacks; else say that the cost is not known.
    """
    found = load_precisions()
    if not found:
        return advise(found)
    measured = (found["backend"], found["num_updates"], found["weights_sha256"])
    if measured != (backend, exported["num_updates"], exported["checkpoint"]["sha256"]):
        return (
            f"Not measured: {_name_measured(found)} was; 03 and 05 show what a precision costs in "
            "this run."
        )
    advice = advise(found)
    if not runs.has_bf16():
        return f"Not on this processor, but with AVX-512 BF16 or AMX: {advice}"
    return advice if runs.is_bfloat16_fast() else f"bfloat16 is slower here; {advice}"


def advise(found: runs.Record) -> str:
    """Return a sentence for each reduced precision of ``load_precisions``: whether to use it with
    the bundled weights.
    """
    if not found:
        return "not measured: make bench"
    if found["weights"] != network.SEEDED and not network.find_bundled(found["weights"]):
        return f"measured with {found['weights']}, which is not bundled: make bench"
    if found["weights_sha256"] != network.load_checkpoint(found["weights"]).sha256:
        return f"measured with other weights than {found['weights']} now has: make bench"
    return describe_costs(found)


def describe_costs(found: runs.Record) -> str:
    """Return a sentence for each precision of what ``measure_precisions`` found: whether to use it,
    and what it costs.
    """
    measured = _name_measured(found)
    return ". ".join(
        _advise_on(precision, one, measured) for precision, one in found["precisions"].items()
    )


def _name_measured(found: runs.Record) -> str:
    return f"{found['weights']} on {found['backend']} with {found['num_updates']} updates"


def _advise_on(precision: str, found: runs.Record, measured: str) -> str:
    verdict = "recommended" if found["recommended"] else "not recommended"
    costs = "; ".join(
        f"{name}: {one['px1_loss']:+.2f} points of 1px, {round(one['epe_loss'], 3) + 0.0:+.1%} EPE"
        for name, one in found["families"].items()
    )
    return f"{precision} is {verdict} for {measured}: lost on held-out scenes, {costs}"
