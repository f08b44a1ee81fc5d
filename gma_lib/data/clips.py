"""Frames along time, from a folder of images or a video file."""

import glob
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from gma_lib.data.videos import count_video_frames, read_video
from gma_lib.flow.images import read_photo
from gma_lib.runs.files import BadFile, hash_file, hash_value, name_file, reading

IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
ALL = slice(None)
WHOLE = r"(\d+)"
DECIMAL = r"((?<!\d\.)\d+\.\d+(?!\.?\d)|\d+)"  # 0.5, but three whole numbers in 1.2.3
MOST_CHARACTERS, LONGEST_LINE = 2**24, 2**13  # of a list of pairs

logger = logging.getLogger(__name__)


def read_clip(
    source: Path,
    *,
    select: slice = ALL,
    times: list[Fraction] | None = None,
    say: Callable[[str], None] = logger.warning,
) -> Iterator[np.ndarray]:
    """Yield frames (3, H, W), RGB, 0..255, one at a time: uint8 where they are stored so.

    Parameters
    ----------
    source
        A folder of images, which are sorted by the numbers in their names, or a video. ``0.10`` is
        a decimal number, unless ``0.1`` is there too; ``-`` is no sign; case is ignored.
    select
        Which frames, counted from 0.
    times
        List that receives the time of each frame of a video, in seconds.
    say
        Callback for what a user should know about a video, or about the names of images: gaps, a
        doubtful order, and more than one sequence.

    Raises
    ------
    BadFile
        ``source`` does not exist, holds fewer than two of the frames selected, or holds a frame
        that cannot be decoded, has more than 67 million pixels, or has another size than the first.
        The error comes when that frame is reached.
    """
    source = Path(source)
    count = 0
    if source.is_dir():
        for frame in _read_folder(source, select, say):
            count += 1
            yield frame
    else:
        timed = read_video(source, say=say)
        for time, frame in islice(timed, select.start, select.stop, select.step):
            count += 1
            if times is not None:
                times.append(time)
            yield frame
    if count < 2:
        found = f"{count or 'no'} frame{'s' * (count == 0)} to read"
        raise BadFile(source, found, "at least two", "Name another clip, or more of its frames")


def count_frames(source: Path, select: slice = ALL) -> int | None:
    """Return the number of frames selected; None if a video does not declare how many it has."""
    source = Path(source)
    found = len(_list_images(source)) if source.is_dir() else count_video_frames(source)
    return found and len(range(found)[select])


def name_images(source: Path, select: slice = ALL) -> list[str]:
    """Return the names of a folder's images in the order of the frames; none for a video."""
    return [path.name for path in _list_images(source)[select]] if source.is_dir() else []


def match_images(
    first: Path, second: Path, *, say: Callable[[str], None] = logger.warning
) -> list[tuple[Path, Path]]:
    """Pair the images of two folders by their names, or those of two patterns (``left/*.png``,
    ``right/*/im.png``) in the order of the numbers in their paths.

    Parameters
    ----------
    say
        Callback for numbers or letters by which patterns may have paired wrong images.

    Raises
    ------
    BadFile
        Nothing is found, a folder lacks the other's image, or the patterns find different numbers
        of images, or two that are one by name.
    OSError
        A folder that a pattern finds cannot be listed.
    """
    are_patterns = not (first.is_dir() and second.is_dir())
    if are_patterns:
        found = [_expand(pattern) for pattern in (first, second)]
    else:
        found = [_list_images(first), _list_images(second)]
        names = [{path.stem: path.name for path in paths} for paths in found]
        if lacking := sorted(names[0].keys() ^ names[1].keys()):
            poor = second if lacking[0] in names[0] else first
            raise BadFile(poor, f"no image {lacking[0]}", "the other folder's names", "Add it")
    counts = [len(paths) for paths in found]
    if counts[0] != counts[1] or not counts[0]:
        told = f"{counts[1]} images, and {counts[0]} in {first}"
        raise BadFile(second, told, "as many, and at least one", "Name others")
    pairs = list(zip(*found, strict=True))
    if are_patterns and (sentence := _doubt(pairs)):
        say(sentence)
    return pairs


def read_pair_list(path: Path) -> list[tuple[Path, Path]]:
    """Read pairs of images from a text file: two paths a line, relative to the file, in quotes
    where they hold spaces; what follows ``#`` is left out.
    """
    with reading(path, "text with two paths a line", "Write it anew") as path:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
        lines = text.splitlines()
        if len(text) > MOST_CHARACTERS or len(max(lines, key=len, default="")) > LONGEST_LINE:
            raise ValueError(
                f"too long: at most {MOST_CHARACTERS:,} characters, {LONGEST_LINE:,} a line"
            )
        words = [  # shlex takes 80 us a line
            shlex.split(line, comments=True) if re.search("[\"'\\\\#]", line) else line.split()
            for line in lines
        ]
    pairs = [line for line in words if line]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        wrong = next((f"a line with {len(pair)} paths" for pair in pairs if len(pair) != 2), "none")
        raise BadFile(path, wrong, "two paths a line", "Quote paths that hold spaces")
    return [(path.parent / one, path.parent / two) for one, two in pairs]


def hash_clip(source: Path) -> str:
    """SHA-256 of a video, or of all images of a folder and their names."""
    if source.is_dir():
        return hash_value({path.name: hash_file(path) for path in _list_images(source)})
    return hash_file(source)


def _list_images(folder: Path) -> list[Path]:
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    for path in files:
        with reading(path, "a picture"):  # no folder, no pipe, which would never end
            pass
    return _sort_by_numbers(files, folder)


def _expand(pattern: Path) -> list[Path]:
    """Sorted paths that a pattern finds; glob omits folders that cannot be listed without a word,
    and the others would be paired as if these were not there.
    """
    for place in map(str, pattern.parents):
        for folder in glob.glob(place) if glob.has_magic(place) else ():
            if os.path.isdir(folder):
                os.scandir(folder).close()
    return _sort_by_numbers([*map(Path, glob.glob(str(pattern)))], pattern)


def _sort_by_numbers(paths: list[Path], source: Path) -> list[Path]:
    """Sort frame_2 before frame_10, and by the folders first."""
    keys = _make_keys(paths, DECIMAL)
    if len(set(keys.values())) < len(keys):  # v1.1 and v1.10
        keys = _make_keys(paths, WHOLE)
    ordered = sorted(keys, key=keys.__getitem__)
    for one, other in pairwise(ordered):
        if keys[one] == keys[other]:
            found = f"{one.name} and {other.name} are one frame by name"
            raise BadFile(source, found, "a number for each", "Rename or remove one")
    return ordered


def _doubt(pairs: list[tuple[Path, Path]]) -> str | None:
    """A sentence if the numbers in the two paths of a pair, counted from the end, differ by other
    amounts than those of the pair before it, or their letters do, as where each side lacks another
    image.
    """
    apart, letters_apart = [], []
    for pair in pairs:
        names = [str(path.with_suffix("")) for path in pair]
        left, right = (Counter(filter(str.isalpha, name.casefold())) for name in names)
        letters_apart.append((left - right, right - left))
        one, other = (re.findall(r"\d+", name)[::-1] for name in names)
        apart.append([int(second) - int(first) for first, second in zip(one, other, strict=False)])
    for index, (before, now) in enumerate(pairwise(apart)):
        moved = letters_apart[index] != letters_apart[index + 1]
        if moved or (len(before) == len(now) and before != now):
            told = [" with ".join(map(name_file, pair)) for pair in pairs[index : index + 2]]
            return f"paired {told[0]}, then {told[1]}: is an image missing?"
    return None


def _doubt_order(paths: list[Path]) -> list[str]:
    """A sentence where the text of the names changes, or decimals may be whole numbers."""
    split = [_split(path.stem, DECIMAL) for path in paths]
    whole = [_split(path.stem, WHOLE) for path in paths]
    for index, (one, other) in enumerate(pairwise(paths)):
        if split[index][::2] != split[index + 1][::2]:
            minus = " ('-' is no sign)" * ("-" in one.stem + other.stem)
            return [
                f"flow crosses from {one.name} to {other.name}, whose names differ in more than "
                f"numbers{minus}; give each sequence its own folder, without masks and copies"
            ]
        if split[index] > split[index + 1] or whole[index] > whole[index + 1]:
            return [
                f"{one.name} comes before {other.name}; if this is wrong, use the same number of "
                "digits after the point in every name"
            ]
    return []


def _find_gaps(paths: list[Path]) -> list[str]:
    """A sentence where the last numbers of the names go on by more than they mostly do; none for
    times, whose steps are no multiples of each other.
    """
    keys = [_split(path.stem, DECIMAL) for path in paths]
    steps = {
        number: key[-2] - earlier[-2]
        for number, (earlier, key) in enumerate(pairwise(keys))
        if len(key) > 1 and [*key[:-2], key[-1]] == [*earlier[:-2], earlier[-1]]
    }
    usual = median_low(steps.values()) if steps else 0
    decimal = any(step.denominator > 1 for step in steps.values())
    gaps = [number for number, step in steps.items() if step > usual]
    if not gaps or usual <= 0 or (decimal and any(step % usual for step in steps.values())):
        return []
    one, other = paths[gaps[0]].name, paths[gaps[0] + 1].name
    count = len(gaps) - 1
    more = f", and in {count} more place{'s' * (count > 1)}" * (count > 0)
    return [f"frames are missing between {one} and {other}{more}; flow crosses the gap"]


def _make_keys(paths: list[Path], number: str) -> dict[Path, tuple[Any, ...]]:
    parts = {path: (*path.parent.parts, path.stem) for path in paths}
    return {path: tuple(_split(part, number) for part in parts[path]) for path in parts}


def _split(name: str, number: str) -> tuple[Any, ...]:
    """Text, case aside, and numbers in turn."""
    parts = re.split(number, name.casefold())
    return tuple(Fraction(part) if index % 2 else part for index, part in enumerate(parts))


def _read_folder(folder: Path, select: slice, say: Callable[[str], None]) -> Iterator[np.ndarray]:
    size, said = None, set()
    paths = _list_images(folder)[select]
    for sentence in _doubt_order(paths) + _find_gaps(paths):
        say(f"{folder}: {sentence}")
    for path in paths:
        frame, remarks = read_photo(path)
        for sentence in remarks:
            if (told := sentence.removeprefix(name_file(path))) not in said:  # once, not per frame
                said.add(told)
                say(sentence)
        size = size or frame.shape[1:]
        if frame.shape[1:] != size:
            found, expected = (f"{width}x{height} px" for height, width in (frame.shape[1:], size))
            raise BadFile(path, found, f"{expected} as before", "Scale it, or remove it")
        yield frame
