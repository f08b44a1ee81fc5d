"""Write docs/flow.webp, the README's picture: rendered frames turn into the flow of their pixels.

Run it as ``python docs/animation.py`` (about a minute on two cores).
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from gma_lib import load
from gma_lib.data.demo import DEMO_SCENES, make_scene
from gma_lib.data.rendering import Renderer
from gma_lib.flow.colours import choose_radius, flow_to_rgb

HEIGHT, WIDTH, PAIRS = 272, 640, 18


def main() -> None:
    """Render a scene, compute its flow, and wipe from one to the other."""
    rush = DEMO_SCENES[1]
    scene = make_scene(rush.seed, height=HEIGHT, width=WIDTH, speed=rush.speed)
    renderer = Renderer(scene)
    # Slow motion around the moment for which the scene is laid out
    frames = [renderer.render(time).clean for time in np.linspace(0, 6, PAIRS + 1)]
    network = load("gma-procedural", num_updates=12)
    flows = [network(*pair) for pair in itertools.pairwise(frames)]
    radius = choose_radius(*flows) / 2  # half: the background's slow motion shows as well
    pictures = []
    for number, (frame, flow) in enumerate(zip(frames, flows, strict=False)):
        picture = frame.transpose(1, 2, 0).round().astype(np.uint8)
        edge = round(WIDTH * np.clip((number - 3) / (PAIRS - 6), 0, 1))
        picture[:, :edge] = flow_to_rgb(flow, radius)[:, :edge]
        picture[:, max(edge - 2, 0) : edge] = 255
        pictures.append(Image.fromarray(picture))
    path = Path(__file__).with_name("flow.webp")
    times = [120] * (PAIRS - 1) + [1500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)


if __name__ == "__main__":
    main()
