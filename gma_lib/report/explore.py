"""Sliders for JupyterLab: step through pairs and updates, and move the point whose attention is
shown.
"""

import base64
from collections.abc import Callable
from importlib.util import find_spec

from gma_lib.data.sintel import FramePair
from gma_lib.evaluate.insight import Examined, find_hidden_point
from gma_lib.report.figures import Picture, draw_update, encode_figure
from gma_lib.report.notebook import display, draw_attention_from, is_live, say, show


def explore(
    pairs: list[FramePair], examine: Callable[[FramePair], Examined], first: Examined
) -> None:
    """Show sliders in JupyterLab, and a picture where widgets would be dead.

    Parameters
    ----------
    pairs
        Those with ground truth can be chosen.
    examine
        Looks inside the network for a pair; called when one is chosen, which takes some seconds.
    first
        The pair to start with.
    """
    if is_live() and find_spec("ipywidgets") is not None:
        display(build_panel(pairs, examine, first))
        return
    show(_draw_update(first, 1), photo=True)
    say(
        "A picture of the first update: "
        "in JupyterLab (make lab) this cell has sliders for the pair, the update and the point."
    )


def build_panel(
    pairs: list[FramePair], examine: Callable[[FramePair], Examined], first: Examined
) -> object:
    """Return a menu of pairs, sliders for the update and for the point's x and y, and two pictures
    that follow them.
    """
    import ipywidgets

    known = {first.pair.name: first}
    names = [pair.name for pair in pairs if pair.flow is not None]
    wide = ipywidgets.Layout(width="420px")
    menu = ipywidgets.Dropdown(options=names, value=first.pair.name, description="pair")
    status = ipywidgets.Label()
    update = ipywidgets.IntSlider(min=1, continuous_update=False, description="update", layout=wide)
    x, y = (
        ipywidgets.IntSlider(min=0, continuous_update=False, description=name, layout=wide)
        for name in "xy"
    )
    pictures = [
        ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%")) for _ in range(2)
    ]

    def draw(change: object = None) -> None:
        examined = known[menu.value]
        pictures[0].value = _to_png(_draw_update(examined, update.value))
        pictures[1].value = _to_png(draw_attention_from(examined, (x.value, y.value)))

    def choose(change: object = None) -> None:
        if menu.value not in known:
            status.value = f"looking inside {menu.value} ..."
            known[menu.value] = examine(next(pair for pair in pairs if pair.name == menu.value))
            status.value = ""
        examined = known[menu.value]
        height, width = examined.truth.shape[1:]
        update.max, x.max, y.max = len(examined.inside.flows), width - 1, height - 1
        update.value = update.max
        x.value, y.value = find_hidden_point(examined.truth, examined.occluded)
        draw()

    menu.observe(choose, names="value")
    choose()
    for slider in (update, x, y):
        slider.observe(draw, names="value")
    return ipywidgets.VBox(
        [ipywidgets.HBox([menu, status]), update, ipywidgets.HBox([x, y]), *pictures]
    )


def _draw_update(examined: Examined, number: int) -> Picture:
    return draw_update(examined.inside.flows, examined.truth, number, title=examined.pair.name)


def _to_png(picture: Picture) -> bytes:
    return base64.b64decode(encode_figure(picture[0])[1])
