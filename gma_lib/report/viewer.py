"""The pair viewer: a page that shows frames, flow and errors of pairs under one zoom, with the
values of every pixel. It needs no network and no server. Its script: ``templates/viewer.js``.
"""

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np

import gma_lib
from gma_lib.data.pair import FramePair, LoadedPair
from gma_lib.evaluate.insight import Examined, Inside, find_hidden_point
from gma_lib.flow import choose_radius, endpoint_error, flow_to_rgb
from gma_lib.flow.files import find_known
from gma_lib.flow.images import to_picture
from gma_lib.infer.inference import StoredFlow
from gma_lib.network.sizes import STRIDE
from gma_lib.report.figures import (
    ERROR_RANGE,
    Picture,
    draw_errors,
    draw_flow,
    draw_update,
    encode_figure,
)
from gma_lib.report.pages import fill_template
from gma_lib.runs import Record, Run, write_text
from gma_lib.runs.choosing import choose_evenly
from gma_lib.runs.progress import is_live

STEP, COARSE_STEP = 0.01, 0.05  # px: of flow, and of the flow after earlier updates
MOST_UPDATES = 12  # earlier updates in a page, evenly chosen: 0.3 MB each at Sintel's size
MOST_LETTERS = 4e6  # of packed pairs in a page, which stays below 5 MB with its pictures
MOST_WEIGHTS = 1e6  # of attention in a page, a byte each before compression
_LARGEST, _UNKNOWN = 32767, -32768  # of 16 bits; viewer.js knows the second


def write_viewer(
    run: Run,
    stored: StoredFlow,
    roles: Mapping[str, FramePair],
    pairs: Sequence[FramePair],
    *,
    most: int,
    num_updates: int,
    palette: str = "middlebury",
) -> Path:
    """Write ``viewer.html``, the viewer of a run's pairs, into the run's folder; return its path.

    Parameters
    ----------
    stored
        The run's flow.
    roles
        Role (best, median, worst) -> pair, embedded in the page.
    pairs
        All pairs of the run.
    most
        How many of them at most, evenly chosen, the page loads when they are chosen: from files in
        ``viewer/``, 1 MB each at Sintel's size.
    """
    page = run.folder / "viewer.html"
    for old in page.with_suffix("").glob("*.js"):
        old.unlink()
    named = {f"{role}: {pair.name}": pair for role, pair in roles.items()}
    others = [pair for pair in choose_evenly(pairs, most) if pair not in roles.values()]
    entries: list[Record] = []
    pictures, room, files = [], MOST_LETTERS, 0
    for title, pair in (named | {pair.name: pair for pair in others}).items():
        flow, loaded = stored.read(pair), pair.load()
        entry = _pack_pair(title, loaded, flow, num_updates)
        if title in named:
            pictures.append(_draw_sheet(title, loaded, flow, palette))
            room -= len(_to_json(entry))
        if title not in named or (entries and room < 0):
            files += 1
            file = f"{page.stem}/{files}.js"
            write_text(page.parent / file, f"gmaPair({_to_json(entry)});\n")
            entry = {"title": title, "file": file}
        entries.append(entry)
    shown = len({pair.name for pair in roles.values()}) + len(others)
    words = {"title": "Pair viewer", "stage": "05_evaluate", "shown": shown, "total": len(pairs)}
    return _write_page(page, run, entries, pictures, palette, words)


def write_update_viewer(run: Run, examined: Examined, *, palette: str = "middlebury") -> Path:
    """Write ``updates.html``, the viewer of one pair, into a run's folder; return its path. It has
    the flow after each update, or after as many, evenly chosen, as fit in a page, and shows where
    every point looks.
    """
    pair, flows = examined.pair, examined.inside.flows
    chosen = choose_evenly(range(1, len(flows)), MOST_UPDATES)
    packed = _pack_pair(pair.name, pair.load(), flows[-1], len(flows))
    packed["updates"] = [
        {"number": number} | _pack_scored(flows[number - 1], examined.truth, COARSE_STEP)
        for number in chosen
    ]
    point = find_hidden_point(examined.truth, examined.occluded)
    packed["attention"] = {"point": point} | _pack_attention(examined.inside)
    while len(_to_json(packed)) > MOST_LETTERS and packed["updates"]:
        packed["updates"] = choose_evenly(packed["updates"], len(packed["updates"]) - 1)
    sheet = draw_update(flows, examined.truth, len(flows), title=pair.name, palette=palette)
    words = {"title": "Updates and attention", "stage": "07_inside", "total": None}
    return _write_page(run.folder / "updates.html", run, [packed], [sheet], palette, words)


def pack_flow(flow: np.ndarray, step: float = STEP) -> Record:
    """Pack flow (2, H, W) as base64 for the page: 16-bit multiples of ``step`` px, or of a larger
    one where the flow reaches beyond 327 px, as differences from what three neighbours predict.

    Unknown flow is the smallest number.
    """
    known = find_known(flow)
    flow = np.where(known, flow, 0)
    step = max(step, float(np.abs(flow).max()) / _LARGEST)
    values = np.where(known, np.rint(flow / step), _UNKNOWN).astype(np.int16)
    with np.errstate(over="ignore"):  # wraps around, and back when it is unpacked
        values[:, :, 1:] -= values[:, :, :-1].copy()
        values[:, 1:] -= values[:, :-1].copy()
    folded = (values << 1 ^ values >> 15).view(np.uint16)  # small numbers of both signs are small
    planes = np.stack([folded >> 8, folded & 255], axis=1).astype(np.uint8)
    return {"step": step, "data": _to_base64(zlib.compress(planes.tobytes()))}


def _pack_scored(flow: np.ndarray, truth: np.ndarray | None, step: float = STEP) -> Record:
    """Pack flow with its EPE, which the page could tell to a step only; None without truth."""
    epe = None
    if truth is not None and (known := find_known(flow) & find_known(truth)).any():
        epe = float(endpoint_error(flow[:, None, known], truth[:, None, known]).mean())
    return pack_flow(flow, step) | {"epe": epe}


def _pack_attention(inside: Inside) -> Record:
    """Attention between blocks of cells, as few as fit in a page: a byte for each two, on a scale
    of 32 steps per doubling, of which 128 is an even spread.
    """
    rows, columns = inside.grid
    factor, blocks = 1, inside.attention.reshape(rows, columns, rows, columns)
    while blocks.size / factor**4 > MOST_WEIGHTS:
        factor += 1
    for axis, side in enumerate(blocks.shape):
        starts = np.arange(0, side, factor)
        counts = np.diff(starts, append=side).reshape([-1 if n == axis else 1 for n in range(4)])
        blocks = np.add.reduceat(blocks, starts, axis=axis) / counts
    ratios = np.log2(np.maximum(blocks * (rows * columns), 2**-4))
    steps = np.clip(np.rint(32 * ratios + 128), 0, 255).astype(np.uint8)
    return {
        "rows": blocks.shape[0],
        "columns": blocks.shape[1],
        "side": STRIDE * factor,
        "left": inside.padding.left,
        "top": inside.padding.top,
        "data": _to_base64(zlib.compress(steps.tobytes())),
    }


def _pack_pair(title: str, loaded: LoadedPair, flow: np.ndarray, num_updates: int) -> Record:
    mask = loaded.occluded
    return {
        "title": title,
        "width": flow.shape[2],
        "height": flow.shape[1],
        "radius": choose_radius(flow if loaded.flow is None else loaded.flow),
        "num_updates": num_updates,
        "frame1": _to_jpeg(loaded.frame1),
        "frame2": _to_jpeg(loaded.frame2),
        "flow": _pack_scored(flow, loaded.flow),
        "truth": None if loaded.flow is None else pack_flow(loaded.flow),
        "occluded": None
        if mask is None
        else _to_base64(zlib.compress(np.packbits(mask).tobytes())),
        "updates": [],
        "attention": None,
    }


def _draw_sheet(title: str, loaded: LoadedPair, flow: np.ndarray, palette: str) -> Picture:
    """What the page shows without JavaScript, and on paper."""
    if loaded.flow is None:
        return draw_flow(loaded.frame1, flow, title=title, palette=palette)
    return draw_errors(
        loaded.frame1,
        loaded.frame2,
        flow,
        loaded.flow,
        occluded=loaded.occluded,
        invalid=loaded.invalid,
        title=title,
        palette=palette,
    )


def _write_page(
    page: Path,
    run: Run,
    pairs: list[Record],
    pictures: Sequence[Picture],
    palette: str,
    words: Record,
) -> Path:
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    rim = flow_to_rgb(np.stack([np.cos(angles), np.sin(angles)])[:, None], 1.0, palette)[0]
    colours = {
        "rim": rim.tolist(),
        "centre": flow_to_rgb(np.zeros((2, 1, 1)), 1.0, palette)[0, 0].tolist(),
        "errors": matplotlib.colormaps["cividis"](np.arange(256), bytes=True)[:, :3].tolist(),
        "error_range": ERROR_RANGE,
        "ratios": matplotlib.colormaps["RdBu_r"](np.linspace(-0.5, 1.5, 256), bytes=True)[
            :, :3
        ].tolist(),
    }
    encoded = [encode_figure(figure, photo=True) for figure, _ in pictures]
    text = fill_template(
        "viewer.html.j2",
        **words,
        whose=run.title,
        # in JupyterLab, nothing makes the pages that these links lead to
        index="" if is_live() else os.path.relpath(run.index, page.parent),
        version=gma_lib.__version__,  # no time: the same pairs give the same file
        error_range=f"{ERROR_RANGE:.0f}",
        pictures=[
            {"type": media_type, "data": data, "alt": alt}
            for (media_type, data), (_, alt) in zip(encoded, pictures, strict=True)
        ],
        data=_to_json({"pairs": pairs, **colours}),
    )
    write_text(page, text)
    return page


def _to_json(value: Record) -> str:
    """JSON that may stand in a script: names of scenes cannot end it."""
    return json.dumps(value).replace("<", "\\u003c")


def _to_jpeg(frame: np.ndarray) -> str:
    """A frame (3, H, W) as a data URL."""
    blue_first = to_picture(frame)[:, :, ::-1]
    _, data = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return f"data:image/jpeg;base64,{_to_base64(data.tobytes())}"


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
