"""The card of the bundled weights: how they were made and how they score, as numbers and as a page.

    gma card                                # write the page
    gma card --score [--sintel FOLDER]      # measure again first
    gma card --run FOLDER                   # take over weights that a recipe made

``weights/gma-procedural.json`` holds the numbers, ``params/recipe.yaml`` the settings. The page
``weights/gma-procedural.md`` and its figure are made from them and never edited by hand.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import jinja2
import numpy as np
import torch

from gma_lib import network, runs
from gma_lib.backends.torch import refuse_less_than_float32
from gma_lib.data import PASSES, FramePair, LoadedPair, Padding
from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT, build_index, load_pairs
from gma_lib.flow import ErrorSums, dis, pool_scores, sum_errors
from gma_lib.flow.refine import refine_flow
from gma_lib.runs.code import digest_module
from gma_lib.runs.machine import name_commit
from gma_lib.runs.records import trace_provenance
from gma_lib.runs.resumed import map_resumably
from gma_lib.training.config import (
    Recipe,
    TrainingConfig,
    load_config,
    load_recipe,
    name_differences,
)
from gma_lib.training.curve import plot_training
from gma_lib.training.pairs import VALIDATION, render_held_out
from gma_lib.training.scenes import TrainingPair

NAME = "gma-procedural"
RECIPE = runs.RESOURCES / "params" / "recipe.yaml"
# Test scenes of each family; they follow those of validation, so that no choice was made by them.
TEST_PAIRS = 32
SCORED_UPDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
REFINED = "12"  # updates, before refinement
FEWEST_PAIRS = 4  # for an interval
SINTEL_SCENE = re.compile(
    "(alley|ambush|bamboo|bandage|cave|market|mountain|shaman|sleeping|temple)_[1-7]"
)
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
    """Return the network's flow after each of the given numbers of updates, in float32 (TF32
    off).
    """
    refuse_less_than_float32()
    padding, device = Padding.for_size(*frame1.shape[1:]), next(model.parameters()).device
    image1, image2 = (
        torch.from_numpy(padding.pad(frame)[None]).to(device) for frame in (frame1, frame2)
    )
    with torch.inference_mode():
        encoded = model.features(image1), model.features(image2), model.context(image1)
        flows = list(model.flow_by_update(*encoded, max(updates)))
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
    refinement, and of DIS, by group of pixels; those over all pixels with intervals. A killed run
    continues from the folder ``kept``.
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
    found = map_resumably(score, pairs, label, kept and kept / f"{label}.json")
    for method in found[0]:
        each = [{group: ErrorSums(**one) for group, one in pair[method].items()} for pair in found]
        sums = pool_scores(each)
        scores[method] = {name: sums[name].to_metrics() for name in SCORED_GROUPS}
        scores[method]["all"] |= estimate_intervals([groups["all"] for groups in each])
    return scores


def estimate_intervals(pairs: list[ErrorSums]) -> runs.Record:
    """Return intervals of 95 % for EPE and 1px, null for fewer than 4 pairs: 2,000 bootstrap
    samples over pairs, whose pixels are not independent.
    """
    table = np.array([(one.error, one.below[0], one.pixels) for one in pairs], dtype=float)
    chosen = np.random.default_rng(0).integers(0, len(pairs), (2000, len(pairs)))
    error, below, pixels = table[chosen].sum(axis=1).T
    epe, px1 = np.percentile([error / pixels, below / pixels], [2.5, 97.5], axis=1).T.tolist()
    enough = len(pairs) >= FEWEST_PAIRS
    return {
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
    families = render_held_out(config, numbers=range(first, first + TEST_PAIRS), device=device)
    return {
        family: _score_with_dis(model, pairs, TrainingPair.to_arrays, label=family, kept=kept)
        for family, pairs in families.items()
    }


def score_sintel(
    weights: str, index: runs.Record, *, kept: Path | None = None
) -> dict[str, dict[str, runs.Record]]:
    """Score weights and DIS on the pairs of an index that have ground truth, pass by pass; a killed
    run continues from the folder ``kept``. ValueError for a file that has changed since.
    """
    model, _ = network.load_model(weights)
    known = [pair for pair in load_pairs(index) if pair.flow is not None]
    scores = {}
    for pass_name in PASSES:
        pairs = [pair for pair in known if pair.pass_name == pass_name]
        scores[pass_name] = _score_with_dis(
            model, pairs, FramePair.load, label=f"Sintel {pass_name}", kept=kept
        )
    return scores


def update_scores(card: runs.Record, *, sintel: Path | None = None) -> runs.Record:
    """Measure the card's weights again; without ``sintel``, what is known of real frames is kept.

    Raises
    ------
    BadFile
        The weights are not those of the card, or frames below ``sintel`` are of other scenes than
        MPI-Sintel's.
    """
    file = network.WEIGHTS_FOLDER / f"{NAME}.safetensors"
    weights = network.load_checkpoint(file)
    if weights.sha256 != card["sha256"]:  # the card would vouch for damage from then on
        expected = f"{card['sha256']}, as its card says"
        remedy = "Restore the file, or take over a run with --run"
        raise runs.BadFile(file, f"SHA-256 {weights.sha256}", expected, remedy)
    config = load_config(runs.RESOURCES / "params" / "train.yaml")
    # with anything else that decides scores it starts anew
    code = [digest_module(name) for name in runs.list_loaded_modules()]
    index = sintel and _index_sintel(sintel)
    frames = index and index["pairs"]
    machine = [runs.identify_processor(), torch.get_num_threads()]
    made_from = [weights.sha256, asdict(config), code, runs.find_versions(), *machine, frames]
    key = runs.hash_value(made_from)
    kept = runs.PROJECT / "outputs" / "card" / key[:16]
    families = score_held_out(config, str(file), kept=kept)
    known = card.get("scores", {"sintel_excerpt": {}, "sintel_frames": {}})
    excerpt, made = known["sintel_excerpt"], trace_provenance()
    about = known["sintel_frames"]
    if index:
        excerpt = score_sintel(str(file), index, kept=kept)
        about = describe_frames(index) | {"provenance": made}
    shutil.rmtree(kept)
    return card | {
        "sha256": weights.sha256,
        "bytes": file.stat().st_size,
        "scores": {
            "held_out_pairs_each": TEST_PAIRS,
            "held_out_size": [VALIDATION.height, VALIDATION.width],
            "held_out_families": families,
            "sintel_excerpt": excerpt,
            "sintel_frames": about,
        },
        "beats_dis_on_held_out": beats_dis(families),
        "refinement_pays": refinement_pays(families),
        "note": compose_note(card["how"], excerpt, about),
        "provenance": made,
    }


def _index_sintel(root: Path) -> runs.Record:
    """List the frames below a folder; BadFile for others than those of MPI-Sintel training, and
    where none has ground truth, or one has and no mask of occlusions.
    """
    index = build_index(root, description="", track=runs.track)
    for pair in index["pairs"]:
        if not SINTEL_SCENE.fullmatch(pair["scene"]):
            raise runs.BadFile(root, f"holds {pair['scene']}", "scenes of MPI-Sintel training")
    scored = [pair for pair in index["pairs"] if "flow" in pair["files"]]
    if not scored or not all("occlusion" in pair["files"] for pair in scored):
        raise runs.BadFile(
            root,
            f"{len(index['pairs'])} pairs, {len(scored)} with ground truth",
            "ground truth and a mask of occlusions for it",
        )
    return index


def describe_frames(index: runs.Record) -> runs.Record:
    """Say what of MPI-Sintel is scored: the scenes, the pairs of each pass, (height, width)."""
    scored = [pair for pair in index["pairs"] if "flow" in pair["files"]]
    return {
        "scenes": sorted({pair["scene"] for pair in scored}),
        "pairs": len({(pair["scene"], pair["number"]) for pair in scored}),
        "size": [index["height"], index["width"]],
    }


def name_frames(about: runs.Record) -> str:
    """Name the frames that were scored, such as "a two-scene excerpt of MPI-Sintel training"."""
    if about["pairs"] == PAIRS_IN_TRAINING_SPLIT:
        return "all of MPI-Sintel training"
    count = len(about["scenes"])
    number = ("no", "one", "two", "three", "four", "five")[count] if count < 6 else str(count)
    return f"a {number}-scene excerpt of MPI-Sintel training"


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


def describe_time(how: runs.Record) -> str:
    """Say how long all parts took: on processors by core, on other devices as measured."""
    others = how.get("device_minutes", {})
    times = [f"{how['minutes']:.0f} minutes of one processor core"]
    for device, minutes in others.items():
        times.append(f"{minutes:.0f} minutes of a {device} device")
    return " and ".join(times if how["minutes"] or not others else times[1:])


def compose_note(how: runs.Record, excerpt: runs.Record, about: runs.Record) -> str:
    """Compose the sentences that accompany every number made with these weights."""
    made = (
        "The weights were trained by this package on procedural scenes for about "
        f"{describe_time(how)}"
    )
    if not excerpt:
        return f"{made}. They are not the authors' weights."
    mine, classical = (excerpt["clean"][method]["all"] for method in ("6", "dis"))
    by_epe = "ahead of" if mine["epe"] < classical["epe"] else "behind"
    by_px1 = "ahead of" if mine["px1"] > classical["px1"] else "behind"
    return (
        f"{made}. On {name_frames(about)} (clean, 6 updates), their EPE is "
        f"{mine['epe']:.2f} px, {by_epe} OpenCV's DIS ({classical['epe']:.2f} px); "
        f"{100 * mine['px1']:.1f} % of pixels are less than one pixel off, {by_px1} its "
        f"{100 * classical['px1']:.1f} %. They are not the authors' weights."
    )


# --- the page -------------------------------------------------------------------------------------


def make_page(card: runs.Record) -> str:
    """Write the card as Markdown.

    Raises
    ------
    BadFile
        ``params/recipe.yaml`` says something else than what these weights were made by.
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    recipe = load_recipe(RECIPE)
    if (found := runs.hash_value(recipe.list_settings())) != card["how"]["recipe_sha256"]:
        remedy = "Restore it, or take over a run of it with --run"
        expected = f"{card['how']['recipe_sha256']}, the recipe of {card['name']}"
        raise runs.BadFile(RECIPE, f"its settings have the SHA-256 {found}", expected, remedy)
    return pages.get_template("card.md.j2").render(
        card=card,
        recipe=recipe,
        time=describe_time(card["how"]),
        name_commit=name_commit,
        name_frames=name_frames,
    )


def adopt_run(card: runs.Record, folder: Path) -> tuple[runs.Record, bytes]:
    """Return the card of the weights that ``params/recipe.yaml`` made, with the records of their
    parts, and the content of their file.

    Scores and everything else that follows from other weights are left out.

    Raises
    ------
    ValueError, OSError
        ``folder`` holds no finished run of this recipe, or its weights were changed since.
    """
    run = runs.read_json(folder / "recipe.json", made_by="gma train --recipe")
    recipe = load_recipe(RECIPE)
    if differing := name_differences(run["recipe"], runs.make_plain(recipe.list_settings())):
        raise ValueError(
            f"{folder}: made with another recipe than {RECIPE}, by {', '.join(differing)}"
        )
    file = folder.absolute() / "weights.safetensors"
    weights = network.load_checkpoint(file)
    if weights.sha256 != run.get("result"):
        found = "no finished run" if "result" not in run else f"SHA-256 {weights.sha256}"
        remedy = "Run `gma train --recipe` again, which makes what is missing"
        raise runs.BadFile(file, found, f"{run.get('result', 'the result')} of {RECIPE}", remedy)
    kept = {name: card[name] for name in ("name", "stored_as", "is_not")}
    how = describe_making(recipe, card["how"]["records"], run["records"])
    adopted = kept | {
        "sha256": weights.sha256,
        "bytes": file.stat().st_size,
        "note": compose_note(how, {}, {}),
        "how": how | {"recipe_sha256": runs.hash_value(recipe.list_settings())},
    }
    return adopted, file.read_bytes()


def describe_making(recipe: Recipe, before: runs.Record, run: runs.Record) -> runs.Record:
    """Put the records of a run's parts beside those of parts that it did not train, and sum up
    what computed them.

    Earlier records, from before devices were noted, are of one core.
    """
    known = run | before | {name: one for name, one in run.items() if "minutes" in one}
    made = {part.name: known[part.name] for part in recipe.parts if part.name in known}
    times: dict[str, float] = defaultdict(float)
    for one in made.values():
        earlier = one.get("earlier", [])
        own = one.get("minutes", 0) - sum(other.get("minutes", 0) for other in earlier)
        for spent in (*earlier, one | {"minutes": own}):
            device = spent.get("device", "cpu")
            cores = spent.get("threads", 1) if device == "cpu" else 1
            times[device] += cores * spent.get("minutes", 0)
    trained = [one for one in run.values() if "minutes" in one]
    computed = {
        f"{one['processor']}, {one['threads']} threads, on {one['device']}": None
        for record in trained
        for one in (*record.get("earlier", ()), record)
    }
    return {
        "hardware": f"Parts of the last run: {'; '.join(computed) or 'none was trained'}",
        "minutes": round(times.pop("cpu", 0)),
        "device_minutes": {device: round(minutes) for device, minutes in times.items()},
        "records": made,
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
        card, content = adopt_run(card, run)
        _write_files(card, content)
    if score:
        card = update_scores(card, sintel=sintel)
    _write_files(card)
    return card


def _write_files(card: runs.Record, content: bytes | None = None) -> None:
    """Write a card's files, and its weights if given; nothing if one of them cannot be made."""
    files = network.WEIGHTS_FOLDER / NAME
    page = make_page(card)
    curve = [point for one in card["how"]["records"].values() for point in one.get("curve", ())]
    figure = plot_training(curve)
    if content is not None:
        with runs.write_atomically(files.with_suffix(".safetensors")) as partial:
            partial.write_bytes(content)
    runs.write_text(files.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    runs.write_text(files.with_suffix(".md"), page)
    with runs.write_atomically(files.with_name(f"{NAME}-curve.png")) as partial:
        figure.savefig(partial, format="png", dpi=110)
