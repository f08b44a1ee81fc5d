"""The card of the bundled weights: how they were made and how they score, as numbers and as a page.

    gma card                                # write the page
    gma card --score [--sintel FOLDER]      # measure again first
    gma card --run FOLDER                   # take over weights that a recipe made

``weights/gma-procedural.json`` holds the numbers, ``params/recipe.yaml`` the settings. The page
``weights/gma-procedural.md`` and its figure are made from them and never edited by hand.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import jinja2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gma_lib import network, runs
from gma_lib.data import PASSES, FramePair, LoadedPair, Padding, find_pairs
from gma_lib.data.sintel import build_index
from gma_lib.flow import ErrorSums, dis, pool_scores, sum_errors
from gma_lib.flow.metrics import ERROR_STEPS
from gma_lib.flow.refine import refine_flow
from gma_lib.runs.code import digest_module
from gma_lib.runs.records import trace_provenance
from gma_lib.training.config import TrainingConfig, load_config, load_recipe, name_differences
from gma_lib.training.pairs import VALIDATION, PairSource, render_held_out
from gma_lib.training.scenes import TrainingPair

NAME = "gma-procedural"
RECIPE = runs.RESOURCES / "params" / "recipe.yaml"
# Test scenes of each family; they follow those of validation, so that no choice was made by them.
TEST_PAIRS = 32
SCORED_UPDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
REFINED = "12"  # updates, before refinement
FEWEST_PAIRS = 4  # for an interval
SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")

Flows = dict[str, np.ndarray]  # flow (2, H, W) by method
Pair = TypeVar("Pair")


# --- measuring ------------------------------------------------------------------------------------


def score_pairs(
    predict: Callable[[np.ndarray, np.ndarray], Flows], pairs: Iterable[LoadedPair]
) -> dict[str, list[dict[str, ErrorSums]]]:
    """Sum errors: for each method, pair by pair, for every group of ``gma_lib.flow.metrics``.

    Parameters
    ----------
    predict
        Two frames (3, H, W) -> flow (2, H, W) by the name of the method.
    """
    scores: dict[str, list[dict[str, ErrorSums]]] = defaultdict(list)
    for pair in pairs:
        if pair.flow is None:
            raise ValueError("a pair without ground truth has no score")
        for method, flow in predict(pair.frame1, pair.frame2).items():
            scores[method].append(sum_errors(flow, pair.flow, occluded=pair.occluded))
    return scores


def predict_updates(
    model: network.GMA, updates: tuple[int, ...], frame1: np.ndarray, frame2: np.ndarray
) -> Flows:
    """Return the network's flow after each of the given numbers of updates, in float32."""
    padding, device = Padding.for_size(*frame1.shape[1:]), next(model.parameters()).device
    image1, image2 = (
        torch.from_numpy(padding.pad(frame)[None]).to(device) for frame in (frame1, frame2)
    )
    with torch.inference_mode():
        flows = model.predict_sequence(image1, image2, num_updates=max(updates))
    arrays = {str(count): flows[count - 1][0].float().cpu().numpy() for count in updates}
    return {name: np.ascontiguousarray(padding.unpad(flow)) for name, flow in arrays.items()}


def _score_with_dis(
    model: network.GMA,
    pairs: Sequence[Pair],
    load: Callable[[Pair], LoadedPair],
    *,
    label: str,
    kept: Path | None,
) -> dict[str, runs.Record]:
    """Return metrics of the network after each of ``SCORED_UPDATES``, of ``REFINED`` updates after
    refinement, and of DIS, by group of pixels; those over all pixels with their median and with
    intervals. A killed run continues from the folder ``kept``.
    """

    def predict(frame1: np.ndarray, frame2: np.ndarray) -> Flows:
        flows = predict_updates(model, SCORED_UPDATES, frame1, frame2)
        if REFINED in flows:
            flows[f"{REFINED} refined"] = refine_flow(frame1, frame2, flows[REFINED])
        return flows | {"dis": dis(frame1, frame2)}

    def score(pair: Pair) -> runs.Record:
        return {
            method: {group: vars(sums) for group, sums in groups.items()}
            for method, (groups,) in score_pairs(predict, [load(pair)]).items()
        }

    scores = {}
    found = _map_resumably(score, pairs, label, kept and kept / f"{label}.json")
    for method in found[0]:
        each = [{group: ErrorSums(**one) for group, one in pair[method].items()} for pair in found]
        sums = pool_scores(each)
        scores[method] = {name: sums[name].to_metrics() for name in SCORED_GROUPS}
        scores[method]["all"] |= estimate_intervals([groups["all"] for groups in each])
    return scores


def _map_resumably(
    compute: Callable[[Pair], runs.Record], pairs: Sequence[Pair], label: str, kept: Path | None
) -> list[runs.Record]:
    """Compute a record per pair; the file ``kept`` holds those of a killed run."""
    done = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else []
    for pair in runs.track(pairs[len(done) :], label=label, unit="pair"):
        done.append(compute(pair))
        if kept:
            runs.write_text(kept, json.dumps(done))
    return done


def estimate_intervals(pairs: list[ErrorSums]) -> runs.Record:
    """Return the median error in pixels (steps of 0.05 px, null above 5 px), and intervals of 95 %
    for EPE and 1px, null for fewer than 4 pairs: 2,000 bootstrap samples over pairs, whose pixels
    are not independent.
    """
    within = sum(pairs, ErrorSums()).shares_within()
    steps = np.concatenate([[0], ERROR_STEPS])
    median = np.interp(0.5, [0, *within], steps) if within[-1] >= 0.5 else None
    table = np.array([(one.error, one.below[0], one.pixels) for one in pairs], dtype=float)
    chosen = np.random.default_rng(0).integers(0, len(pairs), (2000, len(pairs)))
    error, below, pixels = table[chosen].sum(axis=1).T
    epe, px1 = np.percentile([error / pixels, below / pixels], [2.5, 97.5], axis=1).T.tolist()
    enough = len(pairs) >= FEWEST_PAIRS
    return {
        "median": None if median is None else float(median),
        "epe_interval": epe if enough else None,
        "px1_interval": px1 if enough else None,
    }


def score_held_out(
    config: TrainingConfig, weights: str | Path, *, device: str = "cpu", kept: Path | None = None
) -> dict[str, dict[str, runs.Record]]:
    """Score weights and DIS on the test scenes of both held-out families; a killed run continues
    from the folder ``kept``.
    """
    model, first = network.load_model(weights)[0].to(device), config.validation_pairs
    families = render_held_out(
        config, PairSource(config, device), numbers=range(first, first + TEST_PAIRS)
    )
    return {
        family: _score_with_dis(model, pairs, TrainingPair.to_arrays, label=family, kept=kept)
        for family, pairs in families.items()
    }


def score_sintel(
    weights: str, root: Path, *, kept: Path | None = None
) -> dict[str, dict[str, runs.Record]]:
    """Score weights and DIS on the pairs with ground truth below ``root``, pass by pass; a killed
    run continues from the folder ``kept``.
    """
    model, _ = network.load_model(weights)
    scores = {}
    for pass_name in PASSES:
        pairs = [pair for pair in find_pairs(root, pass_name=pass_name) if pair.flow is not None]
        scores[pass_name] = _score_with_dis(
            model, pairs, FramePair.load, label=f"Sintel {pass_name}", kept=kept
        )
    return scores


def update_scores(card: runs.Record, *, sintel: Path | None = None) -> runs.Record:
    """Measure the card's weights again; without ``sintel``, scores of real frames are kept if the
    weights are unchanged and left out otherwise.
    """
    file = network.WEIGHTS_FOLDER / f"{NAME}.safetensors"  # by name, it would have to fit its card
    weights = network.load_checkpoint(file)
    config = load_config(runs.RESOURCES / "params" / "train.yaml")
    # with anything else that decides scores it starts anew
    code = [digest_module(name) for name in runs.list_loaded_modules()]
    frames = sintel and build_index(sintel, description="", track=runs.track)["pairs"]
    key = runs.hash_value([weights.sha256, asdict(config), code, runs.find_versions(), frames])
    kept = runs.PROJECT / "outputs" / "card" / key[:16]
    families = score_held_out(config, str(file), kept=kept)
    is_known = weights.sha256 == card["sha256"] and "scores" in card
    known = card["scores"]["sintel_excerpt"] if is_known else {}
    excerpt = score_sintel(str(file), sintel, kept=kept) if sintel else known
    shutil.rmtree(kept)
    return card | {
        "sha256": weights.sha256,
        "bytes": file.stat().st_size,
        "scores": {
            "held_out_pairs_each": TEST_PAIRS,
            "held_out_size": [VALIDATION.height, VALIDATION.width],
            "held_out_families": families,
            "sintel_excerpt": excerpt,
        },
        "beats_dis_on_held_out": beats_dis(families),
        "refinement_pays": refinement_pays(families),
        "note": compose_note(card["how"]["minutes"], excerpt),
        "provenance": trace_provenance(),
    }


def beats_dis(families: runs.Record) -> bool:
    """Return whether 12 updates have a lower EPE and a higher 1px than DIS on every family."""
    pairs = [(one["12"]["all"], one["dis"]["all"]) for one in families.values()]
    return all(mine["epe"] < dis["epe"] and mine["px1"] > dis["px1"] for mine, dis in pairs)


def refinement_pays(families: runs.Record) -> bool:
    """Return whether refinement lowers the EPE, also in covered areas, and raises 1px on every
    family.
    """
    pairs = [(one[f"{REFINED} refined"], one[REFINED]) for one in families.values()]
    return all(
        refined["all"]["px1"] > alone["all"]["px1"]
        and all(refined[group]["epe"] <= alone[group]["epe"] for group in ("all", "occluded"))
        for refined, alone in pairs
    )


def compose_note(minutes: float, excerpt: runs.Record) -> str:
    """Compose the sentences that accompany every number made with these weights."""
    made = (
        "The weights were trained by this package on procedural scenes for about "
        f"{minutes:.0f} minutes of one processor core"
    )
    if not excerpt:
        return f"{made}. They are not the authors' weights."
    mine, classical = (excerpt["clean"][method]["all"] for method in ("6", "dis"))
    by_epe = "ahead of" if mine["epe"] < classical["epe"] else "behind"
    by_px1 = "ahead of" if mine["px1"] > classical["px1"] else "behind"
    return (
        f"{made}. On a two-scene excerpt of MPI-Sintel training (clean, 6 updates), their EPE is "
        f"{mine['epe']:.2f} px, {by_epe} OpenCV's DIS ({classical['epe']:.2f} px); "
        f"{100 * mine['px1']:.1f} % of pixels are less than one pixel off, {by_px1} its "
        f"{100 * classical['px1']:.1f} %. They are not the authors' weights."
    )


# --- the page -------------------------------------------------------------------------------------


def make_page(card: runs.Record) -> str:
    """Write the card as Markdown."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    recipe = load_recipe(RECIPE)
    return pages.get_template("card.md.j2").render(card=card, recipe=recipe)


def plot_training(curve: list[runs.Record]) -> Figure:
    """Plot the error on training scenes over the steps of all parts, one after the other."""
    spans = [tuple(map(int, point["steps"].split("-"))) for point in curve]
    ends = np.cumsum([last - first + 1 for first, last in spans])
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="steps, all parts one after the other",
        ylabel="EPE (px)",
        yscale="log",
        xlim=(0, ends[-1]),
    )
    axes.set_yticks([1, 2, 3, 5, 10], labels=["1", "2", "3", "5", "10"])
    axes.minorticks_off()
    parts = [point["phase"] for point in curve]
    changes = [number for number in range(1, len(parts)) if parts[number] != parts[number - 1]]
    for part, (first, end) in enumerate(pairwise([0, *changes, len(parts)])):
        places = np.concatenate([[ends[first - 1] if first else 0], ends[first:end]])
        _plot_part(axes, part, curve[first:end], places)
    # room for the names of the parts below, and the legend above
    axes.set_ylim(
        0.4 * min(point["epe"] for point in curve),
        1.6 * max(point["zero_flow_epe"] for point in curve),
    )
    axes.legend(loc="upper right", ncols=2)
    return figure


def _plot_part(axes: Axes, part: int, points: list[runs.Record], places: np.ndarray) -> None:
    for name, label, colour in (
        ("zero_flow_epe", "no motion at all", "0.7"),
        ("epe", "training", "tab:blue"),
    ):
        axes.stairs(
            [point[name] for point in points],
            places,
            baseline=None,
            color=colour,
            label=None if part else label,
            linewidth=1.5,
        )
    axes.axvspan(places[0], places[-1], color="0.96" if part % 2 else "white", zorder=0)
    axes.text(
        (places[0] + places[-1]) / 2,
        0.02,
        points[0]["phase"],
        transform=axes.get_xaxis_transform(),
        rotation=90,
        fontsize=7,
        ha="center",
    )


def adopt_run(card: runs.Record, folder: Path) -> runs.Record:
    """Take over the weights that ``params/recipe.yaml`` made, and the records of its parts.

    Scores and everything that follows from them are left out: they are those of other weights.

    Raises
    ------
    ValueError, OSError
        ``folder`` holds no finished run of this recipe.
    """
    run = runs.read_json(folder / "recipe.json", made_by="gma train --recipe")
    if differing := name_differences(run["recipe"], runs.make_plain(asdict(load_recipe(RECIPE)))):
        raise ValueError(
            f"{folder}: made with another recipe than {RECIPE}, by {', '.join(differing)}"
        )
    content = (folder / "weights.safetensors").read_bytes()
    with runs.write_atomically(network.WEIGHTS_FOLDER / f"{NAME}.safetensors") as partial:
        partial.write_bytes(content)
    made = card["how"]["records"] | run["records"]
    minutes = round(sum(record.get("minutes", 0) for record in made.values()))
    kept = {name: card[name] for name in ("name", "stored_as", "is_not")}
    return kept | {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "note": compose_note(minutes, {}),
        "how": card["how"] | {"minutes": minutes, "records": made},
    }


def write_card(
    *, score: bool = False, sintel: Path | None = None, run: Path | None = None
) -> runs.Record:
    """Write the page and the figure of the bundled weights and return their numbers, taken over
    from a run first (``adopt_run``), and measured again if ``score`` (``update_scores``).
    """
    numbers = network.WEIGHTS_FOLDER / f"{NAME}.json"
    card: runs.Record = json.loads(numbers.read_text(encoding="utf-8"))
    if run:
        card = adopt_run(card, run)
    if score:
        card = update_scores(card, sintel=sintel)
    if run or score:
        runs.write_text(numbers, json.dumps(card, indent=1) + "\n")
    runs.write_text(numbers.with_suffix(".md"), make_page(card))
    curve = [point for one in card["how"]["records"].values() for point in one.get("curve", ())]
    with runs.write_atomically(network.WEIGHTS_FOLDER / f"{NAME}-curve.png") as partial:
        plot_training(curve).savefig(partial, format="png", dpi=110)
    return card
