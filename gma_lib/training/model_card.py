"""The card of the bundled weights: how they were made and how they score, as numbers and as a page.

    gma card                                # write the page
    gma card --score [--sintel FOLDER]      # measure again first

``weights/gma-procedural.json`` holds the numbers. The page ``weights/gma-procedural.md`` and its
figure are made from them and never edited by hand.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gma_lib.data.padding import Padding
from gma_lib.data.sintel import PASSES, LoadedPair, find_pairs
from gma_lib.flow.classical import dis
from gma_lib.flow.metrics import ErrorSums, pool_scores, sum_errors
from gma_lib.network.checkpoints import WEIGHTS_FOLDER, load_checkpoint, load_model
from gma_lib.network.model import GMA
from gma_lib.runs.files import RESOURCES, write_atomically, write_text
from gma_lib.runs.progress import track
from gma_lib.runs.records import Record
from gma_lib.training.config import TrainingConfig, load_config
from gma_lib.training.pairs import PairSource, render_held_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "gma-procedural"
# Test scenes of each family; they follow those of validation, so that no choice was made by them.
TEST_PAIRS = 32
SCORED_UPDATES = (1, 2, 4, 6, 12, 32)
SINTEL_UPDATES = (6, 12)
SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")

GROUP_TITLES = {
    "occluded": "EPE covered",
    "non_occluded": "EPE not covered",
    "s0_10": "below 10 px",
    "s10_40": "10 to 40 px",
    "s40_plus": "40 px and more",
}
PAGE = """# {name}

The full-size network (5,879,873 parameters, the published names), trained by this package on \
scenes that it draws itself. **{is_not}**

File: `{name}.safetensors`, {stored_as}, {megabytes:.2f} MB, SHA-256 `{sha256}`.
Storing it so moves the flow by {mean_cost:.4f} px on average and {largest_cost:.3f} px at most \
({cost_pairs}).

## How it was made

About {minutes:.0f} minutes of one core, all parts together. {hardware}.

{stages}

{remarks}

The rule: {rule}

How the error on the training scenes fell, beside what no motion at all would have scored on the \
same scenes (numbers in `{name}.json`):

![Endpoint error on the training scenes over all steps, part by part]({name}-curve.png)

## Held-out scenes

{pairs} pairs each, {size}, motion up to about 60 px, other scenes than those of validation, by \
which these weights were chosen. *layers*: unseen seeds of the training's kind. *planes*: other \
textures, moved by homographies. Errors pooled over all pixels; 1px is the share below one pixel; \
DIS is OpenCV's, medium preset.

{families}

{excerpt}{summary}

## Again

    make train
    gma card --score --sintel FOLDER
"""

Flows = dict[str, np.ndarray]  # flow (2, H, W) by method


# --- measuring ------------------------------------------------------------------------------------


def score_pairs(
    predict: Callable[[np.ndarray, np.ndarray], Flows], pairs: Iterable[LoadedPair]
) -> dict[str, dict[str, ErrorSums]]:
    """Add up errors over all pixels of all pairs: for each method, for every group of
    ``gma_lib.flow.metrics``.

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
    return {method: pool_scores(groups) for method, groups in scores.items()}


def predict_updates(
    model: GMA, updates: tuple[int, ...], frame1: np.ndarray, frame2: np.ndarray
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
    model: GMA, updates: tuple[int, ...], pairs: Iterable[LoadedPair]
) -> dict[str, Record]:
    """Return metrics of the network after each number of updates and of DIS, by group of pixels."""

    def predict(frame1: np.ndarray, frame2: np.ndarray) -> Flows:
        flows = predict_updates(model, updates, frame1, frame2)
        return flows | {"dis": dis(frame1, frame2)}

    return {
        method: {name: sums[name].to_metrics() for name in SCORED_GROUPS}
        for method, sums in score_pairs(predict, pairs).items()
    }


def score_held_out(
    config: TrainingConfig, weights: str | Path, *, device: str = "cpu"
) -> dict[str, dict[str, Record]]:
    """Score weights and DIS on the test scenes of both held-out families."""
    model, first = load_model(weights)[0].to(device), config.validation_pairs
    numbers = range(first, first + TEST_PAIRS)
    families = render_held_out(config, PairSource(config, device), numbers=numbers)
    return {
        family: _score_with_dis(
            model,
            SCORED_UPDATES,
            (pair.to_arrays() for pair in track(pairs, label=family, unit="pair")),
        )
        for family, pairs in families.items()
    }


def score_sintel(weights: str, root: Path) -> dict[str, dict[str, Record]]:
    """Score weights and DIS on the pairs with ground truth below ``root``, pass by pass."""
    model, _ = load_model(weights)
    scores = {}
    for pass_name in PASSES:
        found = find_pairs(root, pass_name=pass_name)
        known = [pair for pair in found if pair.flow is not None]
        pairs = track(known, label=f"Sintel {pass_name}", unit="pair")
        scores[pass_name] = _score_with_dis(model, SINTEL_UPDATES, (pair.load() for pair in pairs))
    return scores


def update_scores(card: Record, *, sintel: Path | None = None) -> Record:
    """Measure the card's weights again; without ``sintel``, scores of real frames are kept if the
    weights are unchanged and left out otherwise.
    """
    weights = load_checkpoint(NAME)
    families = score_held_out(load_config(RESOURCES / "params" / "train.yaml"), NAME)
    known = card["scores"]["sintel_excerpt"] if weights.sha256 == card["sha256"] else {}
    excerpt = score_sintel(NAME, sintel) if sintel else known
    return card | {
        "sha256": weights.sha256,
        "bytes": (WEIGHTS_FOLDER / f"{NAME}.safetensors").stat().st_size,
        "scores": card["scores"]
        | {
            "held_out_pairs_each": TEST_PAIRS,
            "held_out_families": families,
            "sintel_excerpt": excerpt,
        },
        "beats_dis_on_held_out": beats_dis(families),
        "note": compose_note(card["how"]["minutes"], excerpt),
    }


def beats_dis(families: Record) -> bool:
    """Return whether 12 updates have a lower EPE and a higher 1px than DIS on every family."""
    pairs = [(one["12"]["all"], one["dis"]["all"]) for one in families.values()]
    return all(mine["epe"] < dis["epe"] and mine["px1"] > dis["px1"] for mine, dis in pairs)


def compose_note(minutes: float, excerpt: Record) -> str:
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
        f"{made}: they see motion roughly, with an EPE of {mine['epe']:.2f} px on a two-scene "
        f"excerpt of MPI-Sintel training (clean, 6 updates), {by_epe} classical DIS "
        f"({classical['epe']:.2f} px), and {100 * mine['px1']:.1f} % of pixels below one pixel, "
        f"{by_px1} its {100 * classical['px1']:.1f} %. They are not the authors' weights."
    )


# --- the page -------------------------------------------------------------------------------------


def make_page(card: Record) -> str:
    """Write the card as Markdown."""
    how, scores, cost = card["how"], card["scores"], card["float16_cost_px"]
    families = [
        f"**{family}**\n\n"
        + _score_table({(_name_method(name),): groups for name, groups in methods.items()}, ("",))
        for family, methods in scores["held_out_families"].items()
    ]
    rows: dict[tuple[str, ...], Record] = {
        (name, _name_method(method)): groups
        for name, methods in scores["sintel_excerpt"].items()
        for method, groups in methods.items()
    }
    table = _score_table(rows, ("pass", ""))
    excerpt = f"## Real frames\n\n{scores['sintel_excerpt_what']}\n\n{table}\n\n" if rows else ""
    return PAGE.format(
        **{name: card[name] for name in ("name", "is_not", "stored_as", "sha256")},
        **{name: how[name] for name in ("minutes", "hardware", "rule")},
        megabytes=card["bytes"] / 1e6,
        mean_cost=max(cost["mean"]),
        largest_cost=max(cost["max"]),
        cost_pairs=cost["pairs"],
        stages=_stage_table(how["stages"]),
        remarks="\n\n".join(how["remarks"]),
        pairs=scores["held_out_pairs_each"],
        size="x".join(map(str, scores["held_out_size"])),
        families="\n\n".join(families),
        excerpt=excerpt,
        summary=_compare_with_dis(card),
    )


def plot_training(curve: list[Record]) -> "Figure":
    """Plot the error on training scenes over the steps of all parts, one after the other."""
    from matplotlib.figure import Figure

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
    lowest = min(point["epe"] for point in curve)
    axes.set_ylim(0.4 * lowest, 1.6 * max(point["zero_flow_epe"] for point in curve))
    axes.legend(loc="upper right", ncols=2)
    return figure


def _plot_part(axes: "Axes", part: int, points: list[Record], places: np.ndarray) -> None:
    lines = (("zero_flow_epe", "no motion at all", "0.7"), ("epe", "training", "tab:blue"))
    for name, label, colour in lines:
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


def _name_method(name: str) -> str:
    return "DIS" if name == "dis" else f"{name} update{'' if name == '1' else 's'}"


def _table(titles: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    head, *body = [f"| {' | '.join(map(str, cells))} |" for cells in (titles, *rows)]
    return "\n".join([head, f"|{'---|' * len(titles)}", *body])


def _stage_table(stages: list[Record]) -> str:
    titles = ("part", "seed", "minutes", "optimiser", "phase", "steps", "frames", "batch")
    rows = []
    for stage in stages:
        first = (stage["what"], stage["seed"], f"{stage['minutes']:.0f}", stage["optimiser"])
        for number, phase in enumerate(stage["phases"]):
            cells = (
                *(("", "", "", "") if number else first),
                *(phase["name"], phase["steps"]),
                f"{phase['height']}x{phase['width']}",
                *(phase["batch_size"], phase["num_updates"]),
                f"{phase['learning_rate']:g} to {phase['final_learning_rate']:g}",
                f"{phase['max_displacement']:g} px",
                "learnt" if phase["learn_occluded"] else "left out",
            )
            rows.append(cells)
    return _table((*titles, "updates", "learning rate", "motion up to", "covered pixels"), rows)


def _score_table(rows: dict[tuple[str, ...], Record], titles: tuple[str, ...]) -> str:
    cells = []
    for names, groups in rows.items():
        shares = [f"{100 * groups['all'][share]:.1f} %" for share in ("px1", "px3", "px5")]
        overall, *errors = (groups[group]["epe"] for group in ("all", *GROUP_TITLES))
        texts = ["-" if error is None else f"{error:.2f}" for error in errors]
        cells.append([*names, f"{overall:.2f}", *shares, *texts])
    return _table([*titles, "EPE", "1px", "3px", "5px", *GROUP_TITLES.values()], cells)


def _compare_with_dis(card: Record) -> str:
    """State the EPE of 12 updates and of DIS, over all pixels and in covered areas."""
    scores = card["scores"]
    places = {f"*{name}*": methods for name, methods in scores["held_out_families"].items()}
    places |= {f"the excerpt, {name}": one for name, one in scores["sintel_excerpt"].items()}
    areas = {"all": "Over all pixels", "occluded": "In covered areas, where GMA aggregates"}
    sentences = []
    for group, where in areas.items():
        parts = "; ".join(
            f"{name} {one['12'][group]['epe']:.2f} px against {one['dis'][group]['epe']:.2f}"
            for name, one in places.items()
        )
        sentences.append(f"{where}, EPE of 12 updates against DIS: {parts}.")
    return " ".join(sentences)


def write_card(*, score: bool = False, sintel: Path | None = None) -> Record:
    """Write the page and the figure of the bundled weights and return their numbers, measured again
    first if ``score`` (see ``update_scores``).
    """
    numbers = WEIGHTS_FOLDER / f"{NAME}.json"
    card: Record = json.loads(numbers.read_text(encoding="utf-8"))
    if score:
        card = update_scores(card, sintel=sintel)
        write_text(numbers, json.dumps(card, indent=1) + "\n")
    write_text(numbers.with_suffix(".md"), make_page(card))
    with write_atomically(WEIGHTS_FOLDER / f"{NAME}-curve.png") as partial:
        plot_training(card["how"]["curve"]).savefig(partial, format="png", dpi=110)
    return card
