"""Frames along time, from a folder of images or a video file."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from gma_lib.flow.images import read_photo
from gma_lib.runs.files import write_atomically

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def read_clip(source: Path) -> Iterator[np.ndarray]:
    """Yield frames one at a time, float32 (3, H, W), RGB, 0..255; memory holds one of them.

    Parameters
    ----------
    source
        A folder of images, which are sorted by the numbers in their names, or a video that OpenCV
        can decode.

    Raises
    ------
    FileNotFoundError, ValueError
        ``source`` does not exist, holds fewer than two frames, or holds a frame that cannot be
        decoded or has another size than the first. The error comes when that frame is reached.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or video file")
    frames = _read_folder(source) if source.is_dir() else _read_video(source)
    count, size = 0, None
    for name, frame in frames:
        count += 1
        size = size or frame.shape[1:]
        if frame.shape[1:] != size:
            raise ValueError(
                f"{name} has {_describe_size(frame.shape[1:])} px where the frames before have "
                f"{_describe_size(size)}"
            )
        yield frame
    if count < 2:
        raise ValueError(
            f"{source}: holds {count or 'no'} frame{'s' * (count == 0)} that can be decoded; "
            "flow needs two"
        )


def count_frames(source: Path) -> int | None:
    """Return the number of frames, None if the file does not declare it."""
    source = Path(source)
    if source.is_dir():
        return len(_list_images(source))
    if not source.is_file():
        return None
    declared = int(cv2.VideoCapture(str(source)).get(cv2.CAP_PROP_FRAME_COUNT))
    return declared if declared > 0 else None


def write_movie(path: Path, pictures: Iterator[np.ndarray], *, frames_per_second: float) -> None:
    """Write pictures, uint8 (H, W, 3), RGB, as an mp4 file; sides are cut to even numbers, as the
    codec requires.
    """
    writer = None
    with write_atomically(path) as partial:
        for picture in pictures:
            height, width = (side - side % 2 for side in picture.shape[:2])
            if writer is None:
                writer = cv2.VideoWriter(
                    str(partial),
                    cv2.VideoWriter_fourcc(*"mp4v"),
                    frames_per_second,
                    (width, height),
                )
                if not writer.isOpened():
                    raise OSError(f"{path}: this OpenCV cannot write mp4 files")
            writer.write(np.ascontiguousarray(picture[:height, :width, ::-1]))
        if writer is None:
            raise ValueError(f"{path}: there are no pictures to write")
        writer.release()


def _describe_size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _list_images(folder: Path) -> list[Path]:
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(files, key=_natural_key)


def _natural_key(path: Path) -> list[int | str]:
    """Sort frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _read_folder(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in _list_images(folder):
        yield str(path), read_photo(path)[0]


def _read_video(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    video = cv2.VideoCapture(str(file))
    try:
        for number in itertools.count(1):
            decoded, image = video.read()
            if not decoded:
                return
            frame = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), dtype=np.float32)
            yield f"{file}, frame {number}", frame
    finally:
        video.release()
