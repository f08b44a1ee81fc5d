"""The demo set: scenes from a seed, rendered in Sintel's layout with exact ground truth."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gma_lib.data.rendering import (
    PATTERNS,
    Layer,
    Motion,
    Renderer,
    Scene,
    Shape,
    Texture,
)
from gma_lib.flow import count_flow_bytes, write_flow, write_frame, write_mask
from gma_lib.runs import Track, pass_silently, require_free_space

SHAPES = 12  # of a scene, in front of its background
_FRAME = re.compile(r"(clean|final|flow|occlusions|invalid)/[^/]+/frame_\d{4}\.(png|flo)")
_PALETTES = (
    ((38, 44, 62), (214, 196, 160)),
    ((22, 58, 66), (240, 212, 120)),
    ((70, 30, 36), (236, 170, 130)),
    ((34, 66, 44), (190, 214, 140)),
    ((54, 40, 82), (206, 178, 226)),
    ((80, 56, 26), (250, 228, 190)),
    ((20, 40, 84), (140, 198, 236)),
)


def make_scene(seed: int, *, height: int, width: int, speed: float) -> Scene:
    """Draw a scene from a seed.

    Parameters
    ----------
    speed
        Pixels per frame of the fastest layers at a width of 1024; most layers are slower.
    """
    rng = np.random.default_rng(seed)
    scale = width / 1024
    camera = Motion(
        start=(width / 2, height / 2),
        step=tuple(rng.uniform(-0.15, 0.15, 2) * speed * scale),
        turn=rng.uniform(-0.01, 0.01),
        zoom=rng.uniform(-0.012, 0.012),
    )
    stack = [Layer(_draw_texture(rng, 0, scale), camera)]
    for number in range(SHAPES):
        nearness = (number + 1) / SHAPES
        step = np.array(camera.step) + _draw_step(rng) * speed * scale * nearness
        motion = Motion(
            # kept away from the rim at time 1.5, so that most shapes are seen in most frames
            start=tuple(rng.uniform([0.05, 0.1], [0.95, 0.9]) * (width, height) - 1.5 * step),
            step=tuple(step),
            turn=rng.normal(0, 0.03) * rng.integers(0, 2),
            zoom=rng.normal(0, 0.02) * rng.integers(0, 2),
        )
        stack.append(
            Layer(_draw_texture(rng, number + 1, scale), motion, _draw_shape(rng, nearness, scale))
        )
    return Scene(height, width, tuple(stack), noise_seed=seed)


def _draw_step(rng: np.random.Generator) -> np.ndarray:
    """A displacement whose length is at most one, mostly small: the cube of a Gaussian, as
    FlyingChairs' generator draws it.
    """
    length = min(1.0, abs(rng.standard_normal()) ** 3 / 3)
    angle = rng.uniform(0, 2 * np.pi)
    return length * np.array([np.cos(angle), 0.6 * np.sin(angle)])


def _draw_texture(rng: np.random.Generator, number: int, scale: float) -> Texture:
    dark, light = _PALETTES[rng.integers(len(_PALETTES))]
    kind = "noise" if number == 0 else list(PATTERNS)[rng.integers(len(PATTERNS))]
    grain = rng.uniform(30, 60) if number == 0 else rng.uniform(8, 26)
    return Texture(kind, int(rng.integers(2**31)), float(grain * max(scale, 0.4)), dark, light)


def _draw_shape(rng: np.random.Generator, nearness: float, scale: float) -> Shape:
    lobes = int(rng.integers(0, 8))
    return Shape(
        radius=float(rng.uniform(45, 95) * (0.7 + 0.6 * nearness) * scale),
        lobes=lobes,
        depth=float(rng.uniform(0.06, 0.3)) if lobes > 1 else 0.0,
        stretch=float(np.exp(rng.normal(0, 0.35))),
        hole=float(rng.uniform(0.3, 0.6)) if rng.random() < 0.3 else 0.0,
    )


@dataclass(frozen=True)
class DemoScene:
    """A scene of the demo set: a name for tables, a seed, and a speed (see ``make_scene``)."""

    name: str
    seed: int
    speed: float

    def make_renderer(self, *, height: int, width: int) -> Renderer:
        """Return what renders its frames at this size."""
        return Renderer(make_scene(self.seed, height=height, width=width, speed=self.speed))


DEMO_SCENES = (DemoScene("drift", 10, 8.0), DemoScene("rush", 34, 60.0))


def render_pair(*, height: int = 436, width: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Render the first two frames of the demo set's fast scene, float32 (3, H, W), RGB, 0..255."""
    renderer = DEMO_SCENES[-1].make_renderer(height=height, width=width)
    return renderer.render(0).clean, renderer.render(1).clean


def estimate_bytes(*, scenes: int, frames: int, height: int, width: int) -> int:
    """Return an upper bound for the files of a rendered set, as if frames did not compress."""
    images = 2 * 3 * height * width + 2 * height * width // 8  # two passes, two masks
    return scenes * frames * (images + count_flow_bytes(height, width))


def render_demo(
    root: Path,
    *,
    scenes: tuple[DemoScene, ...] = DEMO_SCENES,
    frames: int = 4,
    height: int = 436,
    width: int = 1024,
    track: Track = pass_silently,
) -> Path:
    """Render the demo set into ``root`` in Sintel's layout and return ``root``; the same pixels
    every time. An earlier rendering there is replaced.

    Parameters
    ----------
    track
        ``gma_lib.runs.progress.track`` to show progress.

    Raises
    ------
    FileExistsError
        ``root/training`` holds a file that is of no rendering; nothing is changed.
    """
    if frames < 2:
        raise ValueError(f"a scene has at least two frames, not {frames}")
    root = Path(root)
    earlier = _list_rendered(root / "training", {scene.name for scene in (*DEMO_SCENES, *scenes)})
    require_free_space(
        root, estimate_bytes(scenes=len(scenes), frames=frames, height=height, width=width)
    )
    renderers = {one.name: one.make_renderer(height=height, width=width) for one in scenes}
    todo = [(name, number) for name in renderers for number in range(1, frames + 1)]
    folder, written = root / "training", set()
    for name, number in track(todo, label="rendering", unit="frame"):
        rendering, file = renderers[name].render(number - 1), f"{name}/frame_{number:04d}"
        files = [
            (write_frame, f"clean/{file}.png", rendering.clean),
            (write_frame, f"final/{file}.png", rendering.final),
            (write_flow, f"flow/{file}.flo", rendering.flow),
            (write_mask, f"occlusions/{file}.png", rendering.occluded),
            (write_mask, f"invalid/{file}.png", np.zeros_like(rendering.occluded)),
        ]
        for write, place, array in files[: 5 if number < frames else 2]:  # the last has no truth
            write(folder / place, array)
            written.add(folder / place)
    for path in earlier - written:  # of more frames or other scenes
        path.unlink(missing_ok=True)
    return root


def _list_rendered(folder: Path, scenes: Collection[str]) -> set[Path]:
    """List the files of earlier renderings of these scenes. Hidden files, which systems and killed
    processes leave, are ignored.
    """
    found = set()
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or _is_real_folder(path):
            continue
        if not _FRAME.fullmatch(place.as_posix()) or place.parts[1] not in scenes:
            raise FileExistsError(
                f"{path} is no file of this set, which takes the whole folder: give another one, "
                "or move the file away"
            )
        found.add(path)
    return found


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
