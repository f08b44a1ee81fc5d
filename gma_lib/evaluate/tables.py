"""What notebooks and pages say about scores: tables, curves, sentences."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT
from gma_lib.evaluate import published
from gma_lib.flow.metrics import GROUP_LABELS, Deviation, ErrorSums
from gma_lib.network.bundled import find_bundled
from gma_lib.network.sizes import SEEDED
from gma_lib.runs.records import Record

if TYPE_CHECKING:
    from gma_lib.evaluate.evaluation import Comparison


def describe_counts(metrics: dict[str, Record]) -> str:
    """Return ``clean: 2 of 6 pairs scored; final: ...``, the heading of every table."""
    return "; ".join(f"{name}: {_count_scored(scores)}" for name, scores in metrics.items())


def _count_scored(scores: Record) -> str:
    return f"{scores['pairs_scored']} of {scores['pairs_inferred']} pairs scored"


def tabulate_groups(metrics: dict[str, Record]) -> pd.DataFrame:
    """Return groups of pixels x metrics, a block per pass; shares in percent. Groups of equal
    numbers share a row: ``all pixels (also: valid pixels)``.
    """
    rows = {}
    for pass_name, scores in metrics.items():
        groups = GROUP_LABELS.items()
        found = {label: _row(scores[group]) for group, label in groups if group in scores}
        for row in found.values():
            first, *alike = [label for label, other in found.items() if other == row]
            label = f"{first} (also: {'; '.join(alike)})" if alike else first
            rows[pass_name, label] = row
    return _frame(rows, ["pass", "pixels of"])


def tabulate_scenes(metrics: dict[str, Record]) -> pd.DataFrame:
    """Return scenes x metrics over all pixels, a block per pass."""
    rows = {
        (pass_name, scene): _row(groups["all"])
        for pass_name, scores in metrics.items()
        for scene, groups in scores["scenes"].items()
    }
    return _frame(rows, ["pass", "scene"])


def _frame(rows: dict[tuple[str, str], Record], names: list[str]) -> pd.DataFrame:
    columns = list(_row(ErrorSums().to_metrics()))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    frame.index = pd.MultiIndex.from_tuples(rows, names=names) if rows else frame.index
    return frame


def _row(metrics: Record) -> Record:
    return {
        **_epe_and_px1(metrics),
        "3px, %": _percent(metrics["px3"]),
        "5px, %": _percent(metrics["px5"]),
        "Fl, %": _percent(metrics["fl"]),
        "WAUC, 0 to 100": metrics["wauc"],
        "pixels": metrics["pixels"],
    }


def _epe_and_px1(metrics: Record) -> Record:
    return {"EPE, px": metrics["epe"], "1px, %": _percent(metrics["px1"])}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def tabulate_published(metrics: dict[str, Record]) -> pd.DataFrame:
    """Return this run's scores and the published ones, per pass; no verdict."""
    rows = []
    for name, scores in metrics.items():
        found = {f"this run, all pixels, {_count_scored(scores)}": _epe_and_px1(scores["all"])}
        if name in published.GUIDE_PX1:
            found |= {
                published.GUIDE_SOURCE: {"1px, %": 100 * published.GUIDE_PX1[name]},
                published.PAPER_SOURCE: {"EPE, px": published.PAPER_EPE[name]},
                published.PTLFLOW_SOURCE: _epe_and_px1(published.PTLFLOW[name]),
            }
        rows += [{"pass": name, "what": what, **row} for what, row in found.items()]
    return pd.DataFrame(rows).set_index(["pass", "what"])


def judge_accuracy(
    metrics: dict[str, Record],
    export: Record,
    index: Record,
    *,
    weights_and_data_are_published: bool,
) -> str:
    """Say whether this run reproduces the guide's accuracy; no verdict unless the user confirms
    weights and data, nor where the records of 02 and 01 say otherwise.
    """
    if not weights_and_data_are_published:
        return (
            "No verdict: the published numbers hold for the authors' weights on the complete "
            "training split. Set weights_and_data_are_published to compare with them."
        )
    if other := _find_other_making(export, index):
        return f"No verdict: the published numbers are not comparable: {other}."
    sentences = []
    for name, scores in metrics.items():
        wanted, scored = published.GUIDE_PX1[name], scores["pairs_scored"]
        if scored != PAIRS_IN_TRAINING_SPLIT:
            sentences.append(
                f"{name}: no verdict, {scored} of {PAIRS_IN_TRAINING_SPLIT} pairs were scored."
            )
            continue
        found, tolerance = scores["all"]["px1"], published.PX1_TOLERANCE
        word = "reproduced" if abs(found - wanted) <= tolerance else "NOT reproduced"
        sentences.append(
            f"{name}: {word}: 1px {found:.2%}, published {wanted:.2%}, tolerance {tolerance:.2%}."
        )
    return " ".join(sentences)


def _find_other_making(export: Record, index: Record) -> str:
    """What a run was made with that the guide's numbers were not; empty if nothing is known."""
    if export["num_updates"] != published.GUIDE_UPDATES:
        return f"they are of {published.GUIDE_UPDATES} updates, not {export['num_updates']}"
    weights = export["checkpoint"]["name"]
    if weights == SEEDED or find_bundled(weights):
        return f"{weights} are not the authors' weights"
    if not index["description"].startswith(published.GUIDE_DATA):
        return f"the frames are not {published.GUIDE_DATA}'s"
    return ""


# --- distances between flow fields ----------------------------------------------------------------


def tabulate_deviations(found: Mapping[str, Deviation]) -> pd.DataFrame:
    """Return what was compared x mean, 99th percentile and maximum of the distance, in pixels."""
    columns = {"mean": "mean", "p99": "99th percentile", "max": "maximum"}
    rows = {what: vars(deviation) for what, deviation in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename(columns=columns)


def describe_deviations(found: Mapping[str, Deviation]) -> str:
    """Say how far the flow is from PyTorch's at most, and whether rounding explains it."""
    what, worst = max(found.items(), key=lambda item: item[1].max)
    rounded = all(deviation.is_rounding for deviation in found.values())
    return (
        f"The flow is off PyTorch's by at most {worst.max:.1e} px, and by {worst.mean:.1e} px on "
        f"average ({what}): {'rounding' if rounded else 'more than rounding in float32'}."
    )


# --- for charts -----------------------------------------------------------------------------------


def collect_scene_errors(metrics: dict[str, Record]) -> dict[str, dict[str, float]]:
    """Return pass -> scene -> EPE over all pixels."""
    return {
        pass_name: {scene: groups["all"]["epe"] for scene, groups in scores["scenes"].items()}
        for pass_name, scores in metrics.items()
    }


def collect_error_curves(metrics: dict[str, Record]) -> dict[str, list[float]]:
    """Return pass -> share of pixels within 0.05, 0.10, ..., 5 px, for passes with scored pairs."""
    return {
        pass_name: scores["share_within"]
        for pass_name, scores in metrics.items()
        if scores["pairs_scored"]
    }


# --- classical methods ----------------------------------------------------------------------------


def describe_classical(scores: dict[str, dict[str, ErrorSums]]) -> str:
    """Say who is ahead, over all pixels and in occluded areas, in numbers."""
    sentences = []
    for group, label in (("all", "Over all pixels"), ("occluded", "In occluded areas")):
        found = {
            name: groups[group].to_metrics()
            for name, groups in scores.items()
            if group in groups and groups[group].pixels
        }
        epe = {name: metrics["epe"] for name, metrics in found.items()}
        told = {name: f"{epe[name]:.2f} px, 1px {found[name]['px1']:.1%}" for name in epe}
        ours = [name for name in epe if name.startswith("network")]  # alone, and refined
        if not (rivals := {name: epe[name] for name in epe if name not in (*ours, "no motion")}):
            sentences += [f"{label} the {name} has {told[name]}." for name in ours]
            continue
        best = min(rivals, key=rivals.__getitem__)
        for name in ours:
            word = "ahead of" if epe[name] < rivals[best] else "behind"
            sentences.append(
                f"{label} the {name} ({told[name]}) is {word} {best} ({told[best]}) in EPE."
            )
    return " ".join(sentences) or (
        "No pair was compared: none has ground truth, or classical_pairs is 0."
    )


def summarise_scores(classical: Record) -> str:
    """Say in one sentence how the network scores, and other methods on the same pairs.

    Parameters
    ----------
    classical
        The entry of that name in ``metrics.json``, with method -> group -> metrics.
    """
    methods = {
        name: groups["all"]
        for name, groups in classical.items()
        if name not in ("pairs", "left_out")
    }
    if not methods:
        return ""
    ours = methods.pop("network")
    others = [f"{name} {s['epe']:.2f} px, {s['px1']:.1%}" for name, s in methods.items()]
    compared = f" For comparison: {'; '.join(others)}." if others else ""
    pairs = classical["pairs"]
    return (
        f"GMA is off by {ours['epe']:.2f} px on average over {pairs} pair{'s' * (pairs > 1)}, and "
        f"{ours['px1']:.1%} of the pixels are less than 1 px off.{compared}"
    )


def describe_left_out(
    passes: Iterable[str], compared: Mapping[str, "Comparison"], left_out: Mapping[str, str]
) -> str:
    """Say which passes and methods have no scores, and why; empty if all have, or none has."""
    without = [name for name in passes if name not in compared] if compared else []
    found = [f"{name}: no pair was compared." for name in without]
    return " ".join(found + [f"{name} is left out: {why}." for name, why in left_out.items()])


def tabulate_comparisons(compared: Mapping[str, "Comparison"]) -> dict[str, pd.DataFrame]:
    """Return two tables per pass by their captions: over all pixels, and by true speed."""
    found = {}
    for name, one in compared.items():
        title = f"{name}, pairs: {one.pairs}"
        found[f"{title}, all pixels"] = tabulate_methods(one)
        found[f"{title}, by true speed"] = tabulate_speeds(one)
    return found


def tabulate_methods(compared: "Comparison") -> pd.DataFrame:
    """Return a row per method: median and EPE in pixels, shares below 1, 3 and 5 px in percent,
    EPE over occluded pixels, and its own seconds per pair.
    """
    rows = {}
    for name, groups in compared.scores.items():
        metrics, seconds = groups["all"].to_metrics(), compared.seconds.get(name)
        rows[name] = {
            "median, px": metrics["median"],
            **_epe_and_px1(metrics),
            "3px, %": _percent(metrics["px3"]),
            "5px, %": _percent(metrics["px5"]),
            f"EPE {GROUP_LABELS['occluded']}, px": _find_metrics(groups, "occluded")["epe"],
            "s per pair": seconds,
        }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def tabulate_speeds(compared: "Comparison") -> pd.DataFrame:
    """Return a row per method: EPE in pixels and the share below 1 px in percent, by true speed."""
    rows: dict[str, Record] = {name: {} for name in compared.scores}
    for name, groups in compared.scores.items():
        for group in ("s0_10", "s10_40", "s40_plus"):
            metrics, label = _find_metrics(groups, group), GROUP_LABELS[group]
            rows[name][f"EPE {label}, px"] = metrics["epe"]
            rows[name][f"1px {label}, %"] = _percent(metrics["px1"])
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def _find_metrics(groups: Mapping[str, ErrorSums], group: str) -> Record:
    """Metrics of a group; without its mask, those of no pixels."""
    return groups.get(group, ErrorSums()).to_metrics()


def collect_classical_curves(scores: dict[str, dict[str, ErrorSums]]) -> dict[str, list[float]]:
    """Return method -> share of pixels within 0.05, 0.10, ..., 5 px, without "no motion"."""
    return {
        name: groups["all"].shares_within()
        for name, groups in scores.items()
        if name != "no motion"
    }
