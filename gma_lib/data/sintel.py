"""The MPI-Sintel data set on disk: pairs of frames and their ground truth.

The official layout, of which everything but the frames may be absent::

    root/
      training/
        clean/<scene>/frame_0001.png ...        the two passes
        final/<scene>/frame_0001.png ...
        flow/<scene>/frame_0001.flo ...         one file fewer than frames
        occlusions/<scene>/frame_0001.png ...   255 where a pixel is covered in the next frame
        invalid/<scene>/frame_0001.png ...      255 where the ground truth cannot be trusted
      test/                                     frames only
        clean/... final/...

Butler, Wulff, Stanley and Black, "A naturalistic open source movie for optical flow evaluation",
ECCV 2012.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain, groupby, islice
from pathlib import Path

from gma_lib.data.complete import (
    require_all_bits,
    require_masks,
    require_same_pairs,
)
from gma_lib.data.pair import TRUTH, FramePair, require_upright
from gma_lib.flow.files import check_whole, count_flow_bytes
from gma_lib.flow.images import read_image_size
from gma_lib.runs.files import PROJECT, BadFile, hash_file, locate_path, shorten_path
from gma_lib.runs.progress import Track, pass_silently
from gma_lib.runs.records import Record

PASSES = ("clean", "final")
SPLITS = ("training", "test")
PAIRS_IN_TRAINING_SPLIT = 1041  # per pass, in the complete data set
_TRUTH_SUFFIX = {"flow": "flo", "occlusions": "png", "invalid": "png"}  # by folder


def find_root(root: Path, split: str) -> Path:
    """Return ``root`` if it is the data set's folder; otherwise the error names the right folder.

    A relative path starts at the project's folder.
    """
    root = locate_path(root)
    if split not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; give the one that holds Sintel's '{split}' folder"
        )
    if (root / split).is_dir():
        return root
    if any((root / pass_name).is_dir() for pass_name in PASSES):
        raise FileNotFoundError(f"{root} is one level too low: give {root.resolve().parent}")
    if inside := sorted(child for child in root.iterdir() if (child / split).is_dir()):
        raise FileNotFoundError(f"{root} is one level too high: give {inside[0]}")
    raise FileNotFoundError(f"{root} holds no '{split}' folder, so it is not the data set's root")


def find_pairs(
    root: Path,
    *,
    split: str = "training",
    pass_name: str = "clean",
    scenes: Iterable[str] | None = None,
) -> list[FramePair]:
    """List the pairs of consecutive frames of one pass, sorted by scene and number.

    Files that are no frames are ignored. A gap in the numbers, a lone frame, a frame with ground
    truth but no next frame, a mask that only some of the ground truth has, or one without ground
    truth is an error.

    Parameters
    ----------
    scenes
        Names to keep; all when None.
    """
    if pass_name not in PASSES:
        raise ValueError(f"pass is one of {', '.join(PASSES)}, not {pass_name!r}")
    folder = find_root(root, split) / split
    frames_folder = folder / pass_name
    if not frames_folder.is_dir():
        raise FileNotFoundError(f"{frames_folder}: no such folder; this pass is missing")
    scenes = None if scenes is None else list(dict.fromkeys(scenes))  # each once
    found = {
        child.name: frames
        for child in _list_folder(frames_folder)
        if (scenes is None or child.name in scenes or child.exists())
        and (frames := _list_numbered(child, "png"))
    }
    if not found:
        raise FileNotFoundError(f"{frames_folder} holds no scene with frames (frame_0001.png, ...)")
    wanted = list(found) if scenes is None else scenes
    if unknown := [scene for scene in wanted if scene not in found]:
        raise ValueError(
            f"{frames_folder} has no scene {unknown[0]!r}; there are: {', '.join(found)}"
        )
    for scene in wanted:
        if re.search("[\n\ud800-\udfff]", scene):  # Python's marks for bytes outside UTF-8
            raise ValueError(
                f"{frames_folder}: scene {scene!a} holds a newline or is not UTF-8: rename it"
            )
    for truth in _list_folder(folder / "flow") if scenes is None else ():
        if truth.name not in found and _list_numbered(truth, "flo"):
            raise FileNotFoundError(
                f"{frames_folder} has no frames of {truth.name!r}, and {folder / 'flow'} has its "
                "ground truth: copy them, or name the scenes wanted (parameter scenes)"
            )
    pairs = [
        pair for scene in wanted for pair in _pair_frames(folder, pass_name, scene, found[scene])
    ]
    if split == "training":
        require_masks(pairs)
    return pairs


def _list_folder(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing if there is none, but an error for a link to nothing."""
    if folder.is_symlink() and not folder.exists():
        raise BadFile(folder, "a link to nothing", "a folder", "Mend or remove it")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _list_numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files ``frame_NNNN.<suffix>`` by number; anything else is ignored."""
    numbered: dict[int, Path] = {}
    for path in _list_folder(folder):
        if match := re.fullmatch(rf"frame_([0-9]{{4,}})\.{suffix}", path.name, re.IGNORECASE):
            if len(match[1]) > 4:
                do = "Start another scene" if int(match[1]) > 9999 else "Name it with four digits"
                raise BadFile(path, "a number of more than four digits", "up to 9999", do)
            other = numbered.setdefault(int(match[1]), path)
            if other != path:
                raise BadFile(path, f"the same frame as {other.name}", "one", "Remove one of them")
    return numbered


def _require_same_name(folder: Path, scene: str) -> None:
    """Raise BadFile for truth whose folder's name differs from its scene's in case, or in how
    accents are written, as file systems of other machines make of it.
    """
    for other in _list_folder(folder) if not (folder / scene).is_dir() else ():
        if other.name != scene and _fold(other.name) == _fold(scene):
            raise BadFile(other, f"named {other.name!a}", f"{scene!a}, as its frames", "Rename it")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _pair_frames(
    folder: Path, pass_name: str, scene: str, frames: dict[int, Path]
) -> list[FramePair]:
    for kind in _TRUTH_SUFFIX:
        _require_same_name(folder / kind, scene)
    truth = {
        kind: _list_numbered(folder / kind / scene, suffix)
        for kind, suffix in _TRUTH_SUFFIX.items()
    }
    # A pair needs its second frame; ground truth says where the scene begins and ends.
    first, last = min(chain(frames, *truth.values())), max(frames)
    needed_to = max([last, first + 1, *(number + 1 for number in truth["flow"])])
    if missing := [number for number in range(first, needed_to + 1) if number not in frames]:
        wanted = frames[last].with_name(f"frame_{missing[0]:04d}.png")
        raise FileNotFoundError(
            f"{wanted} is missing: its scene needs frames {first} to {needed_to}; copy it"
        )
    return [
        FramePair(
            pass_name=pass_name,
            scene=scene,
            number=number,
            image1=frames[number],
            image2=frames[number + 1],
            flow=truth["flow"].get(number),
            occlusion=truth["occlusions"].get(number),
            invalid=truth["invalid"].get(number),
        )
        for number in range(first, last)
    ]


def frame_size(pairs: list[FramePair]) -> tuple[int, int]:
    """Return the one (height, width) of all frames and ground truth, from headers and file sizes.

    Raises
    ------
    ValueError
        A file has another size.
    """
    if not pairs:
        raise ValueError("there are no pairs")
    size = read_image_size(pairs[0].image1)
    for pair in pairs:
        for path in (pair.image1, pair.image2, pair.occlusion, pair.invalid):
            if path is not None and read_image_size(path) != size:
                height, width = read_image_size(path)
                raise ValueError(
                    f"{path} has {width}x{height} px, and {pairs[0].image1} has "
                    f"{size[1]}x{size[0]} px: one size a run"
                )
        if pair.flow is not None and pair.flow.stat().st_size != count_flow_bytes(*size):
            raise ValueError(
                f"{pair.flow} has {pair.flow.stat().st_size} bytes; "
                f"the flow of {size[1]}x{size[0]} px has {count_flow_bytes(*size)}"
            )
    return size


def build_index(
    root: Path,
    *,
    description: str,
    split: str = "training",
    passes: Iterable[str] = PASSES,
    scenes: Iterable[str] | None = None,
    track: Track = pass_silently,
) -> Record:
    """List what later stages need of a data set: all pairs, their files and hashes, and the one
    frame size.

    Parameters
    ----------
    description
        What these frames are: one phrase, for tables.
    track
        ``gma_lib.runs.progress.track`` to show progress: hashing all of Sintel reads several GB.
    """
    root = find_root(root, split)
    pairs = [
        pair
        for pass_name in dict.fromkeys(passes)
        for pair in find_pairs(root, split=split, pass_name=pass_name, scenes=scenes)
    ]
    require_same_pairs(pairs)
    height, width = frame_size(pairs)
    require_all_bits(pairs)
    return {
        "description": description,
        "root": shorten_path(root),
        "split": split,
        "height": height,
        "width": width,
        "pairs": [_index_pair(pair, root) for pair in track(pairs, label="hashing", unit="pair")],
    }


def _index_pair(pair: FramePair, root: Path) -> Record:
    for kind, path in pair.files.items():
        check_whole(path)
        if kind != "flow":
            require_upright(path)
    return {
        "name": pair.name,
        "pass_name": pair.pass_name,
        "scene": pair.scene,
        "number": pair.number,
        "files": {kind: str(path.relative_to(root)) for kind, path in pair.files.items()},
        "sha256": {kind: hash_file(path) for kind, path in pair.files.items()},
    }


def load_pairs(index: Record, names: Iterable[str] | None = None) -> list[FramePair]:
    """Return the pairs of an index, or those of the given names, in the index's order.

    Raises
    ------
    ValueError
        The index does not hold one of the names.
    """
    root = PROJECT / index["root"]
    entries = {entry["name"]: entry for entry in index["pairs"]}
    wanted = set(entries if names is None else names)
    if unknown := sorted(wanted - set(entries)):
        raise ValueError(
            f"the index does not hold {len(unknown)} of the pairs (first: {unknown[0]}): "
            "run 01_data and 04_infer again"
        )
    return [
        FramePair(
            pass_name=entry["pass_name"],
            scene=entry["scene"],
            number=entry["number"],
            **{kind: root / path for kind, path in entry["files"].items()},
            sha256=entry["sha256"],
        )
        for name, entry in entries.items()
        if name in wanted
    ]


def count_pairs(index: Record) -> list[Record]:
    """Count pairs, and ground truth of each kind, per pass and scene: rows of a table."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for pair in index["pairs"]:
        counts[pair["pass_name"], pair["scene"]].update(
            ["pairs", *(kind for kind in TRUTH if kind in pair["files"])]
        )
    return [
        {
            "pass": pass_name,
            "scene": scene,
            "pairs": count["pairs"],
            "with flow": count["flow"],
            "with occlusion": count["occlusion"],
            "with invalid": count["invalid"],
        }
        for (pass_name, scene), count in counts.items()
    ]


def choose_subset(
    pairs: list[FramePair], *, batch_size: int, full_batch_size: int | None, pairs_per_scene: int
) -> tuple[list[FramePair], str]:
    """Choose the pairs that a batch size infers; return them and a sentence, empty for all pairs.

    On the complete data set one batch size infers everything. The others infer the first pairs of
    each scene, and 05_evaluate checks that their flow is the same.
    """
    if full_batch_size is None or batch_size == full_batch_size or pairs_per_scene == 0:
        return pairs, ""
    scenes = groupby(pairs, key=lambda pair: (pair.pass_name, pair.scene))
    chosen = [pair for _, scene in scenes for pair in islice(scene, pairs_per_scene)]
    if len(chosen) == len(pairs):
        return pairs, ""
    return chosen, (
        f"a declared subset, the first {pairs_per_scene} pairs of each scene: "
        f"{len(chosen)} of {len(pairs)} pairs."
    )
