"""From flow files and ground truth to scores; a missing pair is an error, never a smaller average."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT, FramePair
from gma_lib.evaluate import published
from gma_lib.flow.classical import CLASSICAL
from gma_lib.flow.files import read_flow
from gma_lib.flow.images import read_frame, read_mask
from gma_lib.flow.metrics import Deviation, ErrorSums, error_sums
from gma_lib.infer.inference import flow_path, read_hashes
from gma_lib.runs.files import hash_file
from gma_lib.runs.run import Run

GROUP_LABELS = {
    "all": "all pixels",
    "valid": "valid pixels",
    "non_occluded": "not occluded",
    "occluded": "occluded",
    "in_frame_occluded": "occluded, stays in frame",
    "out_of_frame": "leaves the frame",
    "s0_10": "speed below 10 px",
    "s10_40": "speed 10 to 40 px",
    "s40_plus": "speed from 40 px",
}


def evaluate(
    pairs: list[FramePair], folder: Path, *, track: Callable[..., Iterable] | None = None
) -> dict[str, dict[str, Any]]:
    """Score the flow of every pair that has ground truth.

    Parameters
    ----------
    pairs
        All pairs that inference was asked for, of any passes.
    folder
        Its flow folder.

    Returns
    -------
    dict
        A key per pass, as ``metrics.json`` holds them: ``pairs_inferred``, ``pairs_scored``,
        ``pixels``, a dict of metrics per group of pixels, then ``scenes`` (name -> groups) and
        ``pairs`` (a list in the data set's order).

    Raises
    ------
    FileNotFoundError
        When the flow of any pair is missing, scored or not.
    ValueError
        When a file is not what inference wrote, or does not fit its ground truth.
    """
    check_complete(pairs, folder)
    totals: dict[tuple, dict[str, ErrorSums]] = defaultdict(lambda: defaultdict(ErrorSums))
    scored = defaultdict(list)
    for pair in track(pairs, label="scores", unit="pair") if track else pairs:
        if pair.flow is None:
            continue
        sums = score_pair(pair, folder)
        scored[pair.pass_name].append(
            {"name": pair.name, "scene": pair.scene, "number": pair.number, **_described(sums)}
        )
        for place in ((pair.pass_name,), (pair.pass_name, pair.scene)):
            for group, value in sums.items():
                totals[place][group] = totals[place][group] + value
    result = {}
    for pass_name in dict.fromkeys(pair.pass_name for pair in pairs):
        scenes = [place[1] for place in totals if len(place) == 2 and place[0] == pass_name]
        result[pass_name] = {
            "pairs_inferred": sum(pair.pass_name == pass_name for pair in pairs),
            "pairs_scored": len(scored[pass_name]),
            "pixels": totals[(pass_name,)]["all"].pixels,
            "share_within": totals[(pass_name,)]["all"].shares_within(),
            **_described(totals[(pass_name,)]),
            "scenes": {scene: _described(totals[(pass_name, scene)]) for scene in scenes},
            "pairs": scored[pass_name],
        }
    return result


def score_pair(pair: FramePair, folder: Path) -> dict[str, ErrorSums]:
    """Error sums of one pair for every group of pixels."""
    path = flow_path(folder, pair)
    try:
        return error_sums(
            read_flow(path),
            pair.load_flow(),
            occluded=None if pair.occlusion is None else read_mask(pair.occlusion),
            invalid=None if pair.invalid is None else read_mask(pair.invalid),
        )
    except ValueError as error:
        raise ValueError(f"{path} against {pair.flow}: {error}") from error


def check_complete(pairs: list[FramePair], folder: Path) -> None:
    """Raise unless the folder holds, for every pair, the file that inference wrote."""
    if not pairs:
        raise ValueError("there are no pairs to score")
    missing = [pair.name for pair in pairs if not flow_path(folder, pair).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} pairs have no flow in {folder} (first: {missing[0]}): run 04_infer to its end"
        )
    written = read_hashes(folder)
    changed = [
        pair.name for pair in pairs if written.get(pair.name) != hash_file(flow_path(folder, pair))
    ]
    if changed:
        raise ValueError(
            f"{len(changed)} flow files in {folder} are not what 04_infer wrote (first: {changed[0]}): run 04_infer again"
        )


def _described(sums: dict[str, ErrorSums]) -> dict[str, dict]:
    return {group: value.to_metrics() for group, value in sums.items()}


def compare_folders(pairs: list[FramePair], folder: Path, reference: Path) -> Deviation | None:
    """Largest deviations between two runs over the pairs that both hold; None where they share
    none.
    """
    shared = [
        pair
        for pair in pairs
        if flow_path(folder, pair).is_file() and flow_path(reference, pair).is_file()
    ]
    found = [
        Deviation.between(read_flow(flow_path(folder, pair)), read_flow(flow_path(reference, pair)))
        for pair in shared
    ]
    if not found:
        return None
    return Deviation(
        max(d.mean for d in found), max(d.p99 for d in found), max(d.max for d in found)
    )


def compare_batch_sizes(pairs: list[FramePair], run: Run) -> dict[str, Deviation]:
    """Largest deviations from every other batch size of the same run that has been inferred, by its
    folder (``bs1``).
    """
    found = {}
    for other in sorted(
        run.folder.parent.glob("bs*"), key=lambda folder: int(folder.name.removeprefix("bs"))
    ):
        if other != run.folder and (other / "infer.json").is_file():
            deviation = compare_folders(pairs, run.flow_folder, other / run.flow_folder.name)
            if deviation is not None:
                found[other.name] = deviation
    return found


def beside_classical(
    pairs: list[FramePair],
    folder: Path,
    *,
    most: int = 100,
    track: Callable[..., Iterable] | None = None,
) -> tuple[dict[str, dict[str, ErrorSums]], int]:
    """Score the network and OpenCV's classical methods on the same pairs with ground truth, evenly
    chosen where there are many.

    Returns
    -------
    scores, pairs
        Method -> group of pixels -> sums, and how many pairs were compared.
    """
    scored = [pair for pair in pairs if pair.flow is not None]
    chosen = [
        scored[place]
        for place in sorted(
            {round(place) for place in np.linspace(0, len(scored) - 1, min(most, len(scored)))}
        )
    ]
    totals: dict[str, dict[str, ErrorSums]] = defaultdict(lambda: defaultdict(ErrorSums))
    for pair in track(chosen, label="classical methods", unit="pair") if track else chosen:
        frame1, frame2, truth = read_frame(pair.image1), read_frame(pair.image2), pair.load_flow()
        occluded = None if pair.occlusion is None else read_mask(pair.occlusion)
        flows = {"network": read_flow(flow_path(folder, pair))} | {
            name: method(frame1, frame2) for name, method in CLASSICAL.items()
        }
        for name, flow in flows.items():
            for group, sums in error_sums(flow, truth, occluded=occluded).items():
                totals[name][group] = totals[name][group] + sums
    return {name: dict(groups) for name, groups in totals.items()}, len(chosen)


def classical_sentence(scores: dict[str, dict[str, ErrorSums]]) -> str:
    """Who is ahead, over all pixels and in occluded areas, in numbers."""
    sentences = []
    for group, label in (("all", "Over all pixels"), ("occluded", "In occluded areas")):
        epe = {
            name: groups[group].error / groups[group].pixels
            for name, groups in scores.items()
            if group in groups and groups[group].pixels
        }
        rivals = {
            name: value for name, value in epe.items() if name not in ("network", "no motion")
        }
        if "network" not in epe or not rivals:
            continue
        best = min(rivals, key=rivals.__getitem__)
        word = "ahead of" if epe["network"] < rivals[best] else "behind"
        sentences.append(
            f"{label} the network ({epe['network']:.2f} px) is {word} {best} ({rivals[best]:.2f} px)."
        )
    return " ".join(sentences) or "No pair has ground truth."


def classical_table(scores: dict[str, dict[str, ErrorSums]]) -> pd.DataFrame:
    """A row per method: EPE in pixels over all, occluded and not occluded pixels, and the share
    below 1 px in percent.
    """
    rows = {}
    for name, groups in scores.items():
        described = {group: sums.to_metrics() for group, sums in groups.items()}
        row = {
            f"EPE {GROUP_LABELS[group]}": described[group]["epe"]
            for group in ("all", "occluded", "non_occluded")
            if group in described
        }
        rows[name] = row | {"1px all pixels, %": 100 * described["all"]["px1"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def classical_curves(scores: dict[str, dict[str, ErrorSums]]) -> dict[str, list[float]]:
    """Method -> share of pixels within 0.05, 0.10, ..., 5 px, without the method that finds no
    motion.
    """
    return {
        name: groups["all"].shares_within()
        for name, groups in scores.items()
        if name != "no motion"
    }


def with_truth(pairs: list[FramePair], pass_name: str) -> int:
    """How many pairs of a pass have ground truth."""
    return sum(pair.pass_name == pass_name and pair.flow is not None for pair in pairs)


# --- tables ---------------------------------------------------------------------------------------


def scored_of(scores: dict[str, Any]) -> str:
    """``2 of 6 pairs scored``: stands over every table."""
    return f"{scores['pairs_scored']} of {scores['pairs_inferred']} pairs scored"


def group_table(metrics: dict[str, dict]) -> pd.DataFrame:
    """Groups of pixels x metrics, a block per pass; shares in percent."""
    rows = {
        (pass_name, label): _row(scores[group])
        for pass_name, scores in metrics.items()
        for group, label in GROUP_LABELS.items()
        if group in scores
    }
    return _frame(rows, ["pass", "pixels of"])


def scene_table(metrics: dict[str, dict]) -> pd.DataFrame:
    """Scenes x metrics over all pixels, a block per pass."""
    rows = {
        (pass_name, scene): _row(groups["all"])
        for pass_name, scores in metrics.items()
        for scene, groups in scores["scenes"].items()
    }
    return _frame(rows, ["pass", "scene"])


def collect_scene_errors(metrics: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Return pass -> scene -> EPE over all pixels."""
    return {
        pass_name: {scene: groups["all"]["epe"] for scene, groups in scores["scenes"].items()}
        for pass_name, scores in metrics.items()
    }


def _frame(rows: dict[tuple, dict], names: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame.from_dict(
        rows, orient="index", columns=list(_row(ErrorSums().to_metrics()))
    )
    frame.index = pd.MultiIndex.from_tuples(rows, names=names) if rows else frame.index
    return frame


def _row(metrics: dict) -> dict:
    def percent(name):
        return None if metrics[name] is None else 100 * metrics[name]

    return {
        "EPE, px": metrics["epe"],
        "1px, %": percent("px1"),
        "3px, %": percent("px3"),
        "5px, %": percent("px5"),
        "Fl, %": percent("fl"),
        "WAUC": metrics["wauc"],
        "pixels": metrics["pixels"],
    }


def published_table(metrics: dict[str, dict]) -> pd.DataFrame:
    """This run beside the published numbers, per pass; no verdict."""
    rows = []
    for pass_name, scores in metrics.items():
        rows.append(
            {
                "pass": pass_name,
                "what": f"this run, all pixels, {scored_of(scores)}",
                **_epe_and_px1(scores["all"]),
            }
        )
        if pass_name in published.GUIDE_PX1:
            rows.append(
                {
                    "pass": pass_name,
                    "what": published.GUIDE_SOURCE,
                    "1px, %": 100 * published.GUIDE_PX1[pass_name],
                }
            )
            rows.append(
                {
                    "pass": pass_name,
                    "what": published.PAPER_SOURCE,
                    "EPE, px": published.PAPER_EPE[pass_name],
                }
            )
            rows.append(
                {
                    "pass": pass_name,
                    "what": published.PTLFLOW_SOURCE,
                    **_epe_and_px1(published.PTLFLOW[pass_name]),
                }
            )
    return pd.DataFrame(rows).set_index(["pass", "what"])


def _epe_and_px1(metrics: dict) -> dict:
    px1 = metrics["px1"]
    return {"EPE, px": metrics["epe"], "1px, %": None if px1 is None else 100 * px1}


def verdict(metrics: dict[str, dict], *, weights_and_data_are_published: bool) -> str:
    """Whether this run reproduces the guide's accuracy; silent unless the user vouches for weights
    and data.
    """
    if not weights_and_data_are_published:
        return (
            "No verdict: the published numbers hold for the authors' weights on the complete training split. "
            "Set weights_and_data_are_published to compare with them."
        )
    sentences = []
    for pass_name, scores in metrics.items():
        wanted = published.GUIDE_PX1[pass_name]
        if scores["pairs_scored"] != PAIRS_IN_TRAINING_SPLIT:
            sentences.append(
                f"{pass_name}: no verdict, {scores['pairs_scored']} of {PAIRS_IN_TRAINING_SPLIT} pairs were scored."
            )
            continue
        found = scores["all"]["px1"]
        word = "reproduced" if abs(found - wanted) <= published.PX1_TOLERANCE else "NOT reproduced"
        sentences.append(
            f"{pass_name}: {word}: 1px {found:.2%}, published {wanted:.2%}, tolerance {published.PX1_TOLERANCE:.2%}."
        )
    return " ".join(sentences)


def error_curves(metrics: dict[str, dict]) -> dict[str, list[float]]:
    """Pass -> share of pixels within 0.05, 0.10, ..., 5 px; passes without scored pairs are left
    out.
    """
    return {
        pass_name: scores["share_within"]
        for pass_name, scores in metrics.items()
        if scores["pairs_scored"]
    }


def chosen_pairs(metrics: dict[str, dict]) -> dict[str, str]:
    """The best, the median and the worst scored pair by EPE over all pixels, of all passes: role ->
    pair name.
    """
    ranked = sorted(
        (pair for scores in metrics.values() for pair in scores["pairs"]),
        key=lambda pair: (pair["all"]["epe"], pair["name"]),
    )
    if not ranked:
        return {}
    roles = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    return {role: pair["name"] for role, pair in roles.items()}
