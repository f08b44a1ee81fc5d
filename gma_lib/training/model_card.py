"""The card of the shipped weights: how they were made and how they score, as numbers and as a page.

    python -m gma_lib.training.model_card --score [--sintel FOLDER]     # measure again, then write
    all three files python -m gma_lib.training.model_card                               # write the
    page from the numbers

``weights/gma-procedural.json`` holds the numbers; ``weights/gma-procedural.md``, with a figure
beside it, says the same to a reader and is never edited by hand.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gma_lib.data.padding import Padding
from gma_lib.data.sintel import find_pairs, find_root
from gma_lib.flow.classical import dis
from gma_lib.flow.files import read_flow
from gma_lib.flow.images import read_frame, read_mask
from gma_lib.flow.metrics import ErrorSums, sum_errors
from gma_lib.network.checkpoints import WEIGHTS_FOLDER, load_checkpoint, load_model
from gma_lib.runs.files import PROJECT, write_atomically
from gma_lib.runs.progress import show_messages, track
from gma_lib.training.config import load_config
from gma_lib.training.scores import SCORED_GROUPS, TEST_PAIRS, score_card

NAME = "gma-procedural"
UPDATES = (6, 12)
GROUP_TITLES = {
    "occluded": "EPE covered",
    "non_occluded": "EPE not covered",
    "s0_10": "below 10 px",
    "s10_40": "10 to 40 px",
    "s40_plus": "40 px and more",
}


# --- measuring ------------------------------------------------------------------------------------


def sintel_scores(weights: str, root: Path) -> dict[str, dict[str, dict]]:
    """Scores of weights and of DIS on the pairs with ground truth below ``root``, by pass, method
    and group of pixels.
    """
    model, _ = load_model(weights)
    scores: dict[str, dict[str, dict]] = {}
    for pass_name in ("clean", "final"):
        sums: dict[str, dict[str, ErrorSums]] = {}
        pairs = [
            pair
            for pair in find_pairs(find_root(root, "training"), pass_name=pass_name)
            if pair.flow is not None
        ]
        for pair in track(pairs, label=f"Sintel {pass_name}", unit="pair"):
            image1, image2 = read_frame(pair.image1), read_frame(pair.image2)
            padding = Padding.for_size(*image1.shape[1:])
            padded = [
                torch.from_numpy(np.ascontiguousarray(padding.pad(image)[None]))
                for image in (image1, image2)
            ]
            with torch.inference_mode():
                flows = model.predict_sequence(*padded, num_updates=max(UPDATES))
            found = {
                str(count): padding.unpad(flows[count - 1][0].numpy()) for count in UPDATES
            } | {"dis": dis(image1, image2)}
            occluded = None if pair.occlusion is None else read_mask(pair.occlusion)
            for method, flow in found.items():
                for group, errors in sum_errors(
                    np.ascontiguousarray(flow), read_flow(pair.flow), occluded=occluded
                ).items():
                    known = sums.setdefault(method, {})
                    known[group] = known.get(group, ErrorSums()) + errors
        scores[pass_name] = {
            method: {group: groups[group].to_metrics() for group in SCORED_GROUPS}
            for method, groups in sums.items()
        }
    return scores


def scored(card: dict[str, Any], *, sintel: Path | None = None) -> dict[str, Any]:
    """The card with its weights measured again; without ``sintel`` the scores of real frames are
    left out if the weights have changed.
    """
    weights = load_checkpoint(NAME)
    families = score_card(load_config(PROJECT / "params" / "train.yaml"), NAME)
    excerpt = (
        sintel_scores(NAME, sintel)
        if sintel
        else card["scores"]["sintel_excerpt"]
        if weights.sha256 == card["sha256"]
        else {}
    )
    scores = card["scores"] | {
        "held_out_pairs_each": TEST_PAIRS,
        "held_out_families": families,
        "sintel_excerpt": excerpt,
    }
    file = WEIGHTS_FOLDER / f"{NAME}.safetensors"
    return card | {
        "sha256": weights.sha256,
        "bytes": file.stat().st_size,
        "scores": scores,
        "beats_dis_on_held_out": beats_dis(families),
        "note": note(card["how"]["minutes"], excerpt),
    }


def beats_dis(families: dict[str, dict]) -> bool:
    """Whether 12 updates have a lower EPE and a higher 1px than DIS on every family."""
    mine, classical = (
        [one[method]["all"] for one in families.values()] for method in ("12", "dis")
    )
    return all(
        a["epe"] < b["epe"] and a["px1"] > b["px1"] for a, b in zip(mine, classical, strict=True)
    )


def note(minutes: float, excerpt: dict[str, dict]) -> str:
    """The sentence that stands beside every number made with these weights."""
    made = f"The weights were trained by this package on procedural scenes for about {minutes:.0f} minutes of one processor core"
    if not excerpt:
        return f"{made}. They are not the authors' weights."
    mine, classical = (excerpt["clean"][method]["all"] for method in ("6", "dis"))
    return (
        f"{made}: they see motion roughly, with an EPE of {mine['epe']:.2f} px on a two-scene excerpt of MPI-Sintel training "
        f"(clean, 6 updates), {'ahead of' if mine['epe'] < classical['epe'] else 'behind'} classical DIS ({classical['epe']:.2f} px), and "
        f"{100 * mine['px1']:.1f} % of pixels below one pixel, {'ahead of' if mine['px1'] > classical['px1'] else 'behind'} "
        f"its {100 * classical['px1']:.1f} %. They are not the authors' weights."
    )


# --- the page -------------------------------------------------------------------------------------


def page(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    how, scores = card["how"], card["scores"]
    lines = [
        f"# {card['name']}",
        "",
        "The full-size network (5,879,873 parameters, the published names), trained by this package on scenes that it draws itself. "
        f"**{card['is_not']}**",
        "",
        f"File: `{card['name']}.safetensors`, {card['stored_as']}, {card['bytes'] / 1e6:.2f} MB, SHA-256 `{card['sha256']}`.",
        f"Storing it so moves the flow by {max(card['float16_cost_px']['mean']):.4f} px on average and "
        f"{max(card['float16_cost_px']['max']):.3f} px at most ({card['float16_cost_px']['pairs']}).",
        "",
        "## How it was made",
        "",
        f"About {how['minutes']:.0f} minutes of one core, all parts together. {how['hardware']}.",
        "",
        *_stages(how["stages"]),
        "",
        *(paragraph for text in how["remarks"] for paragraph in (text, "")),
        f"The rule: {how['rule']}",
        "",
        "How the error on the training scenes fell, beside what no motion at all would have scored on the same scenes "
        f"(numbers in `{card['name']}.json`):",
        "",
        f"![Endpoint error on the training scenes over all steps, part by part]({card['name']}-curve.png)",
        "",
        "## Held-out scenes",
        "",
        f"{scores['held_out_pairs_each']} pairs each, {'x'.join(map(str, scores['held_out_size']))}, motion up to about 60 px, "
        "other scenes than those of validation, by which these weights were chosen. *layers*: unseen seeds of the training's kind. "
        "*planes*: other textures, moved by homographies. Errors pooled over all pixels; 1px is the share below one pixel; "
        "DIS is OpenCV's, medium preset.",
        "",
    ]
    for family, methods in scores["held_out_families"].items():
        lines += [
            f"**{family}**",
            "",
            *_scores({(_method(name),): groups for name, groups in methods.items()}, ("",)),
            "",
        ]
    if scores["sintel_excerpt"]:
        rows = {
            (name, _method(method)): groups
            for name, methods in scores["sintel_excerpt"].items()
            for method, groups in methods.items()
        }
        lines += [
            "## Real frames",
            "",
            f"{scores['sintel_excerpt_what']}",
            "",
            *_scores(rows, ("pass", "")),
            "",
        ]
    lines += [
        _summary(card),
        "",
        "## Again",
        "",
        "    make train",
        "    python -m gma_lib.training.model_card --score --sintel FOLDER",
        "",
    ]
    return "\n".join(lines)


def plot_curve(curve: list[dict]):
    """Figure of the error on training scenes over the steps of all parts, one after the other."""
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
        x = np.concatenate([[ends[first - 1] if first else 0], ends[first:end]])
        labels = ("no motion at all", "training") if part == 0 else (None, None)
        for name, label, colour in zip(
            ("zero_flow_epe", "epe"), labels, ("0.7", "tab:blue"), strict=True
        ):
            axes.stairs(
                [point[name] for point in curve[first:end]],
                x,
                baseline=None,
                color=colour,
                label=label,
                linewidth=1.5,
            )
        axes.axvspan(x[0], x[-1], color="0.96" if part % 2 else "white", zorder=0)
        axes.text(
            (x[0] + x[-1]) / 2,
            0.02,
            parts[first],
            transform=axes.get_xaxis_transform(),
            rotation=90,
            fontsize=7,
            ha="center",
        )
    lowest, highest = (
        min(point["epe"] for point in curve),
        max(point["zero_flow_epe"] for point in curve),
    )
    axes.set_ylim(
        0.4 * lowest, 1.6 * highest
    )  # room for the names of the parts below, and the legend above
    axes.legend(loc="upper right", ncols=2)
    return figure


def _method(name: str) -> str:
    return "DIS" if name == "dis" else f"{name} update{'' if name == '1' else 's'}"


def _stages(stages: list[dict]) -> list[str]:
    titles = [
        "part",
        "seed",
        "minutes",
        "optimiser",
        "phase",
        "steps",
        "frames",
        "batch",
        "updates",
    ]
    titles += ["learning rate", "motion up to", "covered pixels"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for stage in stages:
        for number, phase in enumerate(stage["phases"]):
            what = (
                (stage["what"], stage["seed"], f"{stage['minutes']:.0f}", stage["optimiser"])
                if not number
                else ("", "", "", "")
            )
            rate = f"{phase['learning_rate']:g} to {phase['final_learning_rate']:g}"
            size, motion = (
                f"{phase['height']}x{phase['width']}",
                f"{phase['max_displacement']:g} px",
            )
            counts = (
                phase["name"],
                phase["steps"],
                size,
                phase["batch_size"],
                phase["num_updates"],
            )
            cells = (
                *what,
                *counts,
                rate,
                motion,
                "learnt" if phase["learn_occluded"] else "left out",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _scores(rows: dict[tuple[str, ...], dict], titles: tuple[str, ...]) -> list[str]:
    head = [*titles, "EPE", "1px", "3px", "5px", *GROUP_TITLES.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for names, groups in rows.items():
        everything = groups["all"]
        shares = [f"{100 * everything[share]:.1f} %" for share in ("px1", "px3", "px5")]
        errors = [
            "-" if groups[group]["epe"] is None else f"{groups[group]['epe']:.2f}"
            for group in GROUP_TITLES
        ]
        lines.append(
            f"| {' | '.join([*names, format(everything['epe'], '.2f'), *shares, *errors])} |"
        )
    return lines


def _summary(card: dict[str, Any]) -> str:
    """Who is ahead, over all pixels and in covered areas, at 12 updates."""
    places = {f"*{name}*": methods for name, methods in card["scores"]["held_out_families"].items()}
    places |= {
        f"the excerpt, {name}": methods
        for name, methods in card["scores"]["sintel_excerpt"].items()
    }
    sentences = []
    for group, where in (
        ("all", "Over all pixels"),
        ("occluded", "In covered areas, where GMA aggregates"),
    ):
        parts = [
            f"{name} {methods['12'][group]['epe']:.2f} px against {methods['dis'][group]['epe']:.2f}"
            for name, methods in places.items()
        ]
        sentences.append(f"{where}, EPE of 12 updates against DIS: {'; '.join(parts)}.")
    return " ".join(sentences)


def main() -> None:
    show_messages()
    parser = argparse.ArgumentParser(description="Write the card of the shipped weights.")
    parser.add_argument("--score", action="store_true", help="measure again first")
    parser.add_argument(
        "--sintel", type=Path, help="with --score: a folder of Sintel, for scores on real frames"
    )
    arguments = parser.parse_args()
    numbers, text = WEIGHTS_FOLDER / f"{NAME}.json", WEIGHTS_FOLDER / f"{NAME}.md"
    card = json.loads(numbers.read_text(encoding="utf-8"))
    if arguments.score:
        card = scored(card, sintel=arguments.sintel)
        with write_atomically(numbers) as partial:
            partial.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    with write_atomically(text) as partial:
        partial.write_text(page(card), encoding="utf-8")
    with write_atomically(WEIGHTS_FOLDER / f"{NAME}-curve.png") as partial:
        plot_curve(card["how"]["curve"]).savefig(partial, format="png", dpi=110)
    print(card["note"])


if __name__ == "__main__":
    main()
