"""Write the pictures of README and docs: flow.webp, flow.jpg and error-sheet.jpg.

Run it as ``python docs/pictures.py`` (two minutes on two cores). What it computed, and from what,
is kept in benchmarks/results/pictures.json.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from gma_lib import load, runs
from gma_lib.data.demo import DEMO_SCENES
from gma_lib.flow.colours import choose_radius, flow_to_rgb
from gma_lib.flow.images import to_picture
from gma_lib.flow.metrics import endpoint_error
from gma_lib.network import load_checkpoint
from gma_lib.report.figures import Picture, draw_errors, draw_flow, save_figure

HERE = Path(__file__).resolve().parent
HEIGHT, WIDTH, PAIRS = 272, 640, 18
DRIFT, RUSH = DEMO_SCENES
WEIGHTS, UPDATES = "gma-procedural", 6


def write_animation(path: Path) -> None:
    """Render a scene, compute its flow, and wipe from one to the other."""
    renderer = RUSH.make_renderer(height=HEIGHT, width=WIDTH)
    # Slow motion around the moment for which the scene is laid out
    frames = [renderer.render(time).clean for time in np.linspace(0, 6, PAIRS + 1)]
    network = load(WEIGHTS, num_updates=UPDATES)
    flows = [network(*pair) for pair in itertools.pairwise(frames)]
    radius = choose_radius(*flows) / 2  # half: the background's slow motion shows as well
    pictures = []
    for number, (frame, flow) in enumerate(zip(frames, flows, strict=False)):
        picture = to_picture(frame)
        edge = round(WIDTH * np.clip((number - 3) / (PAIRS - 6), 0, 1))
        picture[:, :edge] = flow_to_rgb(flow, radius)[:, :edge]
        picture[:, max(edge - 2, 0) : edge] = 255
        pictures.append(Image.fromarray(picture))
    times = [120] * (PAIRS - 1) + [1500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)


def write_sheets(folder: Path) -> float:
    """Draw a pair of the demo, without and with its errors; return its EPE in pixels."""
    renderer = DRIFT.make_renderer(height=436, width=1024)
    pair = [renderer.render(number) for number in (1, 2)]
    frames = [one.clean for one in pair]
    flow = load(WEIGHTS, num_updates=UPDATES)(*frames)
    truth = pair[0].flow
    _save(draw_flow(frames[0], flow, title="two frames of the demo"), folder / "flow.jpg")
    sheet = draw_errors(
        *frames, flow, truth, occluded=pair[0].occluded, invalid=None, title="drift"
    )
    _save(sheet, folder / "error-sheet.jpg")
    return float(endpoint_error(flow, truth).mean())


def _save(picture: Picture, path: Path) -> None:
    """Save a figure as a JPEG of 1200 pixels in width."""
    png = path.with_suffix(".png")
    save_figure(picture, png)
    with Image.open(png) as image:
        size = 1200, round(1200 * image.height / image.width)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=85)
    png.unlink()


if __name__ == "__main__":
    write_animation(HERE / "flow.webp")
    epe = write_sheets(HERE)
    results = HERE.parent / "benchmarks" / "results" / "pictures.json"
    weights = load_checkpoint(WEIGHTS).sha256
    runs.write_json(results, {"checkpoint_sha256": weights, "num_updates": UPDATES, "epe": epe})
