"""Files for the refusals that hardly a mutation of a valid file reaches, by reader."""

import argparse
import copy
import io
import zipfile
from pathlib import Path

import cv2
import damage
import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

from gma_lib.runs.files import RESOURCES

GREY = np.full((8, 10), 200, np.uint8)


def make_edges() -> dict[str, tuple[bytes, ...]]:
    """All of them; the readers that are not named need none."""
    png, deep = _save("a.png"), _save("a.tif", GREY.astype(np.uint16))
    return {
        "flo": (b"PIEH" + bytes(8), b"PIEH" + np.array([2**20] * 2, "<i4").tobytes()),
        "mask": (*_make_masks(), _save("a.jpg")),
        "png": (png + bytes(2**25 + 2000), _resize(png, 30_000)),
        "jpg": (_repeat_last_scan(_save("a.jpg", progressive=True)),),
        "tif": (
            _save("a.tif", tiffinfo={254: 1, 330: 8}),  # a camera's raw file
            deep.replace(_tag(262, 1), _tag(262, 0)),  # inverted
        ),
        "safetensors": tuple(map(safetensors.torch.save, _make_weights())),
        "pth": _make_archives(),
        "yaml": (b"a: " + b"x" * 60_000, b"[" * 30 + b"]" * 30, b"a: [&x 1, *x]"),
        "training": tuple(_change("train.yaml", ("phases", 0), wrong) for wrong in PHASES),
        "recipe": tuple(_change("recipe.yaml", *change) for change in RECIPES),
    }


# --- pictures -------------------------------------------------------------------------------------


def _save(name: str, values: np.ndarray = GREY, **options: object) -> bytes:
    return damage.save_bytes(lambda path: Image.fromarray(values).save(path, **options), name)


def _make_masks() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    signed = cv2.imencode(".tif", GREY.astype(np.float32))[1].tobytes()
    return [signed, _save("a.png", exif=turned), _save("a.png", np.dstack([GREY, GREY]))]


def _resize(png: bytes, side: int) -> bytes:
    """Claim to be as high and as wide as ``side``, with the checksum that fits."""
    head = b"IHDR" + side.to_bytes(4) * 2 + png[24:29]
    return png[:12] + head + damage.zlib.crc32(head).to_bytes(4) + png[33:]


def _repeat_last_scan(jpeg: bytes) -> bytes:
    at = jpeg.rindex(b"\xff\xda")
    return jpeg[:at] + jpeg[at:-2] * 100 + jpeg[-2:]


def _tag(name: int, value: int) -> bytes:
    """An entry of a TIFF that holds one short number."""
    numbers = (name, 2), (3, 2), (1, 4), (value, 2)
    return b"".join(number.to_bytes(size, "little") for number, size in numbers)


# --- weights --------------------------------------------------------------------------------------


def _make_weights() -> list[dict[str, torch.Tensor]]:
    """The small network, and twice the same with one entry changed."""
    states = [
        {name: value.clone() for name, value in damage.SMALL_NETWORK.items()} for _ in range(4)
    ]
    states[1]["cnet.norm1.running_var"][0] = -1
    states[2]["cnet.layer2.0.norm3.weight"][0] = 2
    states[3]["att.gamma"][0] = float("inf")
    return states


def _make_archives() -> tuple[bytes, ...]:
    """Archives that unpack to more than they hold, are damaged or hold an object; a long name."""
    saved = damage.save_bytes(lambda path: torch.save(damage.SMALL_NETWORK, path), "a")
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(10_000))
        bomb = file.getvalue()
    at = saved.index(np.ones(3, "<f4").tobytes())
    damaged = saved[:at] + b"\x01" + saved[at + 1 :]
    other = damage.save_bytes(lambda path: torch.save(argparse.Namespace(a=1), path), "a")
    return bomb, damaged, other, b"\x80\x02c" + b"a" * 300 + b"\nb\n."


# --- settings -------------------------------------------------------------------------------------

PHASES: tuple[dict, ...] = (
    {"max_displacement": 0.01},
    {"final_learning_rate": 9.0},
    {"num_updates": 0, "matching": 0.0},
    {"layers": [3, 2]},
    {"height": 12},
)
MEAN = {"training": None, "base": None, "start": None}
RECIPES: tuple[tuple[tuple, object], ...] = (
    ((), []),
    ((), {"settings": []}),
    ((), {"parts": []}),
    (("parts", -1), MEAN | {"mean": {"part-1": 0.5}}),
    (("parts", -1), MEAN | {"mean": None}),
    (("parts", 0), {"start": "part-2"}),
    (("parts", 0), {"only": "fnet"}),
    (("parts", 1), {"name": "part-1"}),
)


def _change(name: str, place: tuple, values: object) -> bytes:
    """A parameter file with other values at one place, or with nothing else than a list."""
    content = yaml.safe_load(Path(RESOURCES / "params" / name).read_text(encoding="utf-8"))
    inside = content
    for key in place:
        inside = inside[key]
    if not isinstance(values, dict):
        return yaml.safe_dump(values).encode()
    inside.update(copy.deepcopy(values))
    return yaml.safe_dump(content).encode()
