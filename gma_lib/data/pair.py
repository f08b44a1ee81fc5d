"""Two consecutive frames and what is known of the motion between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from gma_lib.flow.files import find_known, read_flow
from gma_lib.flow.images import read_frame, read_mask, read_orientation
from gma_lib.runs.digests import read_recorded
from gma_lib.runs.files import BadFile, hash_file
from gma_lib.runs.records import Record

FRAMES, TRUTH = ("image1", "image2"), ("flow", "occlusion", "invalid")  # attributes of a pair


@dataclass(frozen=True)
class LoadedPair:
    """Frames and ground truth of a pair as arrays.

    Attributes
    ----------
    frame1, frame2
        float32 (3, H, W), RGB, 0..255.
    flow
        float32 (2, H, W), in pixels, None without ground truth.
    occluded, invalid
        bool (H, W), None where the file is absent.
    """

    frame1: np.ndarray
    frame2: np.ndarray
    flow: np.ndarray | None = None
    occluded: np.ndarray | None = None
    invalid: np.ndarray | None = None


@dataclass(frozen=True)
class FramePair:
    """Two consecutive frames and the ground truth that exists for the first.

    Attributes
    ----------
    pass_name, scene, number
        ``clean``, ``alley_1``, 2 for the pair of frames 2 and 3.
    image1, image2
        Files of the two frames.
    flow, occlusion, invalid
        Ground-truth files, None where there is none.
    sha256
        Attribute -> SHA-256 of its file, from the index; a file that has changed is refused when
        it is loaded. Empty without an index.
    """

    pass_name: str
    scene: str
    number: int
    image1: Path
    image2: Path
    flow: Path | None = None
    occlusion: Path | None = None
    invalid: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """``clean/alley_1/frame_0002``: unique, and the stem of the pair's files."""
        return f"{self.pass_name}/{self.scene}/frame_{self.number:04d}"

    @property
    def files(self) -> dict[str, Path]:
        """Attribute -> path of its file, of those that exist."""
        found = {kind: getattr(self, kind) for kind in (*FRAMES, *TRUTH)}
        return {kind: path for kind, path in found.items() if path is not None}

    def move(self, locate: Callable[[Path], Path]) -> Self:
        """The same pair with its files in other places."""
        moved: Record = {kind: locate(path) for kind, path in self.files.items()}
        return replace(self, **moved)

    def list_truth(self) -> dict[Path, str]:
        """Path -> SHA-256 of the ground truth that exists."""
        files = {kind: path for kind, path in self.files.items() if kind in TRUTH}
        return {path: self.sha256.get(kind) or hash_file(path) for kind, path in files.items()}

    def load(self) -> LoadedPair:
        """Read the frames and all the ground truth that exists."""
        flow = None if self.flow is None else self.load_flow()
        return LoadedPair(*self.load_frames(), flow, self.load_occluded(), self.load_invalid())

    def load_frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the two frames, float32 (3, H, W), RGB, 0..255."""
        return self._read("image1", read_frame), self._read("image2", read_frame)

    def load_flow(self) -> np.ndarray:
        """Read the true flow, float32 (2, H, W), in pixels.

        Raises
        ------
        FileNotFoundError
            The pair has no ground truth.
        BadFile
            It leaves out pixels, which Sintel's never does; `gma evaluate` scores the others.
        """
        if self.flow is None:
            raise FileNotFoundError(f"{self.name} has no ground truth")
        flow = self._read("flow", read_flow)
        if not find_known(flow).all():
            raise BadFile(self.flow, "leaves out pixels", "flow of every pixel", "Copy it again")
        return flow

    def load_occluded(self) -> np.ndarray | None:
        """Read the mask of pixels that the next frame hides, bool (H, W); None without the file."""
        return None if self.occlusion is None else self._read("occlusion", read_mask)

    def load_invalid(self) -> np.ndarray | None:
        """Read the mask of pixels without a trusted flow, bool (H, W); None without the file."""
        return None if self.invalid is None else self._read("invalid", read_mask)

    def _read(self, kind: str, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        """Read a file; refuse one that a tag turns, and one that is not the indexed one before and
        after.
        """
        if kind != "flow":
            read = partial(_read_upright, read)
        digest = self.sha256.get(kind) or None
        return read_recorded(getattr(self, kind), read, digest, made_by="01_data (or `gma card`)")


def _read_upright(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    require_upright(path)
    return read(path)


def require_upright(path: Path) -> None:
    """Raise BadFile for a frame or mask with a tag that turns it: its ground truth has none."""
    if read_orientation(path) != 1:
        expected = "a frame as it is stored, like its ground truth"
        raise BadFile(path, "a tag that turns it", expected, "Save it without the tag")
