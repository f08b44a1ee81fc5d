"""The demo set has Sintel's layout; the same seed gives the same pixels."""

import hashlib
import re

import numpy as np
import pytest

from gma_lib.data.demo import DEMO_SCENES, estimate_bytes, make_scene, render_demo
from gma_lib.data.sintel import find_pairs
from gma_lib.flow.files import read_flow
from gma_lib.flow.images import read_frame, read_mask

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 128, 160


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return render_demo(tmp_path_factory.mktemp("demo"), frames=3, height=HEIGHT, width=WIDTH)


def test_the_demo_set_is_laid_out_as_sintel_is(demo):
    for pass_name in ("clean", "final"):
        assert len(find_pairs(demo, pass_name=pass_name)) == 2 * len(DEMO_SCENES)
    folder = demo / "training"
    for scene in DEMO_SCENES:
        assert read_frame(folder / "final" / scene.name / "frame_0003.png").shape == (
            3,
            HEIGHT,
            WIDTH,
        )
        assert read_flow(folder / "flow" / scene.name / "frame_0002.flo").shape == (
            2,
            HEIGHT,
            WIDTH,
        )
        assert not read_mask(folder / "invalid" / scene.name / "frame_0001.png").any()
        assert not (folder / "flow" / scene.name / "frame_0003.flo").exists()
    written = sum(path.stat().st_size for path in demo.rglob("*.*") if path.is_file())
    assert written <= estimate_bytes(scenes=len(DEMO_SCENES), frames=3, height=HEIGHT, width=WIDTH)


def test_the_same_seed_gives_the_same_files(demo, tmp_path):
    again = render_demo(tmp_path, scenes=DEMO_SCENES[:1], frames=2, height=HEIGHT, width=WIDTH)
    first, second = _digests(demo), _digests(again)
    assert len(second) == 2 * 2 + 3
    assert second.items() <= first.items()


def _digests(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_a_scene_follows_from_its_seed_and_speed():
    scene = make_scene(3, height=HEIGHT, width=WIDTH, speed=7.0)
    assert scene == make_scene(3, height=HEIGHT, width=WIDTH, speed=7.0)
    assert scene != make_scene(4, height=HEIGHT, width=WIDTH, speed=7.0)
    faster = make_scene(3, height=HEIGHT, width=WIDTH, speed=70.0)
    for slow, fast in zip(scene.layers, faster.layers, strict=True):
        np.testing.assert_allclose(fast.motion.step, 10 * np.array(slow.motion.step), rtol=1e-9)


def test_one_frame_is_not_a_scene(tmp_path):
    with pytest.raises(ValueError, match="at least two frames, not 1"):
        render_demo(tmp_path, frames=1)


SIZE = {"frames": 2, "height": 64, "width": 80}


@pytest.mark.exhaustive
def test_an_earlier_rendering_is_replaced(tmp_path):
    wanted = _digests(render_demo(tmp_path / "wanted", scenes=DEMO_SCENES[:1], **SIZE))
    root = render_demo(tmp_path / "again", **SIZE | {"frames": 3})
    clean = root / "training/clean"
    (clean / "drift/frame_0004.png").symlink_to(clean / "rush/frame_0001.png")
    render_demo(root, scenes=DEMO_SCENES[:1], **SIZE)
    assert _digests(root) == wanted
    (clean / ".DS_Store").write_bytes(b"of a file browser")
    render_demo(root, scenes=DEMO_SCENES[:1], **SIZE)


@pytest.mark.parametrize(
    "place",
    [
        "clean/alley_1/frame_0001.png",
        "clean/rush/frame_0001 (copy).png",
        "notes.txt",
        "camera_data/rush/frame_0001.png",
    ],
)
def test_files_of_somebody_else_are_refused_and_stay(tmp_path, place):
    """A data set, say, whose folder was named by mistake."""
    file = tmp_path / "training" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(b"of somebody else")
    with pytest.raises(FileExistsError, match=re.escape(file.name)):
        render_demo(tmp_path, **SIZE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == b"of somebody else"
