"""What a notebook shows: sentences as prose, and figures of pairs and of the network's inside."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from gma_lib.data.pair import FramePair
from gma_lib.evaluate.insight import (
    Examined,
    describe_aggregation,
    describe_attention,
    describe_updates,
    find_hidden_point,
)
from gma_lib.infer.inference import StoredFlow
from gma_lib.report.figures import (
    Picture,
    draw_aggregation,
    draw_attention,
    draw_flow,
    draw_overview,
    draw_pair,
    draw_updates,
    encode_figure,
    save_figure,
)
from gma_lib.report.pages import table_to_html
from gma_lib.runs.files import shorten_path
from gma_lib.runs.progress import is_live

MOST_SCENES = 4  # that are shown of many


def show(picture: Picture, *, photo: bool = False) -> None:
    """Show a figure with its alternative text where screen readers and HTML pages look for it."""
    figure, text = picture
    media_type, data = encode_figure(figure, photo=photo)
    display({media_type: data, "text/plain": text}, metadata={media_type: {"alt": text}}, raw=True)


def say(sentence: str) -> None:
    """Show a sentence as prose, not as a program's output."""
    display({"text/html": f"<p>{escape(sentence)}</p>", "text/plain": sentence}, raw=True)


def show_table(
    table: pd.DataFrame,
    caption: str = "",
    *,
    number: str = "{}",
    missing: str = "",
    words: bool = False,
) -> None:
    """Show a table; for the parameters see ``table_to_html``."""
    html = table_to_html(table, caption, number=number, missing=missing, words=words)
    display({"text/html": html, "text/plain": table.to_string()}, raw=True)


def show_tables(tables: Mapping[str, pd.DataFrame], *, number: str, missing: str) -> None:
    """Show tables by their captions, as ``show_table`` does."""
    for caption, table in tables.items():
        show_table(table, caption, number=number, missing=missing)


def display(shown: object, **options: object) -> None:
    """Show a widget, or raw data by media type, below the cell."""
    from IPython import display as ipython

    ipython.display(shown, **options)  # type: ignore[no-untyped-call]  # IPython has no types


def show_data(pairs: Sequence[FramePair], *, palette: str = "middlebury") -> None:
    """Show frames and ground truth of one pair of every scene, of four scenes at most."""
    for pair in choose_from_scenes(pairs):
        loaded = pair.load()
        show(
            draw_pair(
                loaded.frame1,
                loaded.frame2,
                loaded.flow,
                loaded.occluded,
                title=pair.name,
                palette=palette,
            ),
            photo=True,
        )


def show_flows(
    pairs: Sequence[FramePair], stored: StoredFlow, *, palette: str = "middlebury"
) -> None:
    """Show the computed flow of one pair of every scene, of four scenes at most."""
    for pair in choose_from_scenes(pairs):
        frame, flow = pair.load_frames()[0], stored.read(pair)
        show(draw_flow(frame, flow, title=pair.name, palette=palette), photo=True)


def show_page(page: Path, text: str) -> None:
    """Show a page within the notebook's, with a link to its file next to the executed notebook; in
    JupyterLab, which cannot reach that file, its content and the file's path.

    Parameters
    ----------
    text
        What it is, for screen readers and where frames are not shown.
    """
    said = escape(text)
    if is_live():
        source = f'srcdoc="{escape(page.read_text("utf-8"))}"'
        way = f"{said}, as a page: <code>{escape(shorten_path(page))}</code>"
    else:
        source, way = f'src="{page.name}"', f'<a href="{page.name}">{said}, as a page</a>'
    html = (
        f'<iframe {source} title="{said}" loading="lazy" '
        f'style="box-sizing: border-box; width: 100%; height: 54rem; border: 1px solid #8a8f98">'
        f"</iframe><p>{way}</p>"
    )
    display({"text/html": html, "text/plain": text}, raw=True)


def show_overview(
    roles: Mapping[str, FramePair], stored: StoredFlow, path: Path, *, palette: str = "middlebury"
) -> None:
    """Show pairs with a role each (best, median, worst), a row each; save the picture, and one
    for phones beside it.
    """
    if not roles:
        return  # no pair has ground truth
    examples = {
        f"{role}: {pair.name}": (pair.load_frames()[0], pair.load_flow(), stored.read(pair))
        for role, pair in roles.items()
    }
    picture = draw_overview(examples, palette=palette)
    save_figure(picture, path)
    for_phones = draw_overview(examples, palette=palette, columns=1)
    save_figure(for_phones, path.with_stem(f"{path.stem}-narrow"))
    show(picture, photo=True)


def choose_from_scenes(pairs: Sequence[FramePair]) -> list[FramePair]:
    """Return one pair of every scene, of the first four: in the first pass that has the scene the
    first pair with ground truth, else the first.
    """
    chosen: dict[str, FramePair] = {}
    for pair in pairs:
        known = chosen.setdefault(pair.scene, pair)
        if known.flow is None and pair.flow is not None and pair.pass_name == known.pass_name:
            chosen[pair.scene] = pair
    return list(chosen.values())[:MOST_SCENES]


def show_attention(examined: Examined) -> None:
    """Show where the deepest hidden point looks, in a picture and in numbers."""
    point = find_hidden_point(examined.truth, examined.occluded)
    picture = draw_attention(
        examined.frame1,
        examined.occluded,
        examined.inside.attention_from(point),
        point,
        even=1 / examined.inside.attention.shape[1],
        title=examined.pair.name,
    )
    show(picture, photo=True)
    say(describe_attention(examined, point))


def show_updates(examined: Examined, *, palette: str = "middlebury") -> None:
    """Show the flow update by update, in pictures and in numbers."""
    curves, title = examined.measure_curves(), examined.pair.name
    flows = examined.inside.flows
    show(draw_updates(flows, examined.truth, curves, title=title, palette=palette), photo=True)
    say(describe_updates(curves))


def show_aggregation(examined: Examined, *, palette: str = "middlebury") -> None:
    """Show what the aggregation adds to the last update, in a picture and in numbers."""
    figure, text = draw_aggregation(
        examined.inside.flows[-1],
        examined.inside.flows_without[-1],
        examined.truth,
        examined.occluded,
        title=examined.pair.name,
        palette=palette,
    )
    sentence = describe_aggregation(examined)
    show((figure, f"{text} {sentence}"), photo=True)
    say(sentence)
