"""Valid files of every kind, and ways to damage them."""

import argparse
import copy
import json
import os
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from PIL import Image

from gma_lib.runs.records import SEAL, hash_value

Rewrite = Callable[[bytes, random.Random], bytes]

TOKENS = [
    *(b"null", b"[]", b"{}", b"NaN", b"-1", b"1e999", b'"x"', b"\xff\xfe", b"\xc2\xb2", b"\0"),
    *(b"[" * 3000, b"&a [*a]", b"!!binary x", b"9" * 5000, b" " * 20000, b"\n", b"|", b"1 / 2"),
    *(b"&a", b"*a", b"<<: {}", b"? ", b"- - - - - - - - - - - - - - - - - - - - - - x", b"---"),
]
NUMBERS = [0, 1, 2, 7, 127, 255, 2**15, 2**16 - 1, 2**26, 2**31 - 1, 2**31, 2**32 - 1]
VALUES = [
    None,
    True,
    0,
    -1,
    3,
    1e999,
    2**70,
    0.5,
    "",
    "1",
    "\u00e9",
    [],
    [1, 2],
    [[]],
    {},
    {"a": 1},
]
PLACES: dict[str, Callable[[Path], object]] = {  # what may be where a file is expected
    "nothing": lambda path: None,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/stdin"),
    "circle": lambda path: path.symlink_to(path),
    "huge": lambda path: (path.touch(), os.truncate(path, 2**28 + 1)),  # takes no room
}
SMALL_NETWORK = {  # entries that stand for the network's 400, of every kind that it has
    "att.gamma": torch.ones(1),
    "fnet.conv1.weight": torch.ones(2, 3),
    "cnet.layer2.0.norm3.weight": torch.ones(2),
    "cnet.layer2.0.downsample.1.weight": torch.ones(2),
    "cnet.norm1.num_batches_tracked": torch.tensor(0),
    "att.rel_ind": torch.arange(3),
    "cnet.norm1.running_var": torch.ones(2),
}


def save_bytes(save: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def make_pictures() -> dict[str, list[bytes]]:
    """Small pictures of every format, depth and number."""
    rng = np.random.default_rng(0)
    colours = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (10, 8))
    picture = Image.fromarray(colours)
    deep = colours.astype(np.uint16) * 257
    several = {"save_all": True, "append_images": [picture.rotate(180)]}

    def image(name: str, mode: str = "RGB", **options: object) -> bytes:
        return save_bytes(lambda path: picture.convert(mode).save(path, **options), name)

    def opencv(name: str, values: np.ndarray) -> bytes:
        return save_bytes(lambda path: cv2.imwrite(str(path), values), name)

    real, lab = deep[..., 0].astype(np.float32), {"mode": "LAB"}
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "png": [
            *(image("a.png"), image("a.png", "LA"), image("a.png", "P"), opencv("a.png", deep)),
            image("a.png", "RGBA"),
        ],
        "png animated": [image("a.png", **several)],
        "mask": [opencv("a.png", (deep[..., 0] > 2**15) * np.uint16(300)), image("a.png", "1")],
        "jpg": [
            *(image("a.jpg"), image("a.jpg", progressive=True), image("a.jpg", "CMYK")),
            image("a.jpg", exif=exif),
        ],
        "gif": [image("a.gif", "P"), image("a.gif", **several)],
        "tif": [
            *(image("a.tif"), image("a.tif", compression="tiff_lzw"), opencv("a.tif", deep)),
            *(opencv("a.tif", real), image("a.tif", **lab)),
        ],
        "ppm": [image("a.ppm"), b"P5 4 3 4095\n" + bytes(24), b"P3 2 1 9\n1 2 3 4 5 6\n"],
        "webp": [image("a.webp"), image("a.webp", lossless=True), image("a.webp", **several)],
        "bmp": [image("a.bmp"), image("a.bmp", "P")],
    }


# --- bytes ----------------------------------------------------------------------------------------


def mutate(content: bytes, rng: random.Random, is_text: bool) -> bytes:
    """One to six changes; two in three spare the first bytes, which name the format."""
    data = bytearray(content)
    spared = min(len(data), 16) if rng.random() < 0.67 else 0
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if len(data) <= spared:
            break
        at = rng.randrange(spared, len(data))
        rng.choice(MUTATIONS + [insert_token] * 6 * is_text)(data, at, rng)
    return bytes(data)


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def replace(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def write_short(data: bytearray, at: int, rng: random.Random) -> None:
    data[at : at + 2] = struct.pack(rng.choice(("<H", ">H")), rng.choice(NUMBERS) & 0xFFFF)


def write_long(data: bytearray, at: int, rng: random.Random) -> None:
    data[at : at + 4] = struct.pack(rng.choice(("<I", ">I")), rng.choice(NUMBERS))


def cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


def remove(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.randrange(1, 40)]


def double(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.randrange(1, 80)]


def insert(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = rng.randbytes(rng.randrange(1, 20))


def insert_token(data: bytearray, at: int, rng: random.Random) -> None:
    data[at : at + rng.randrange(8)] = rng.choice(TOKENS)


MUTATIONS = [flip, flip, replace, replace, write_short, write_long, cut, remove, double, insert]


# --- what a format says, changed so that its header and its checksums still hold ------------------


def rewrite_png(content: bytes, rng: random.Random) -> bytes:
    """Change one chunk, or the pixels before they are packed, and repair the checksums."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    chunk = rng.choice(chunks[rng.random() < 0.8 :] or chunks)
    if chunk[0] == b"IDAT":
        chunk[1] = zlib.compress(mutate(zlib.decompress(chunk[1]), rng, False), 1)
    elif rng.random() < 0.1:
        chunks.remove(chunk)
    else:
        chunk[1] = mutate(chunk[1], rng, False)
    parts = [
        len(held).to_bytes(4) + kind + held + zlib.crc32(kind + held).to_bytes(4)
        for kind, held in chunks
    ]
    return b"".join([content[:8], *parts])


def rewrite_flo(content: bytes, rng: random.Random) -> bytes:
    """Another size, with the values that it needs, some of them odd."""
    width, height = rng.choice(((1, 1), (3, 2), (0, 4), (7, 1), (-2, -3), (2**16, 2**16)))
    count = max(0, width * height * 2) % 1000
    values = rng.choices((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"(knN", bytes(4)), k=count)
    return content[:4] + struct.pack("<ii", width, height) + b"".join(values)


def rewrite_npy(content: bytes, rng: random.Random) -> bytes:
    """Another header, whose own length is right."""
    shape = rng.choice(("(2, 4, 3)", "(2, 12, 10)", "(3, 4, 2)", "(2, 0, 3)", "(2, -4, -3)"))
    shape = rng.choice((shape, "(2, 99999, 99999)", "[2, 4, 3]", "(2, 4)", "2", "None"))
    kinds = "<f4", "<f8", "<f2", ">f4", "<c8", "|O", "<i4", "|S3", "", "(2,)<f4", "<f16", "<M8"
    head = f"{{'descr': {rng.choice(kinds)!r}, 'fortran_order': {rng.choice((True, False, 7))}, "
    head = (head + f"'shape': {shape}, }}\n").encode()
    version = rng.choice((1, 1, 2, 3, 9))
    size = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + rng.randbytes(rng.choice((0, 96, 99)))


def change_json(content: object, rng: random.Random) -> None:
    """Replace or remove one value somewhere inside."""
    places: list[tuple] = []
    todo = [content]
    while todo:
        inside = todo.pop()
        keys = inside if isinstance(inside, dict) else range(len(inside))
        places += [(inside, key) for key in keys]
        todo += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    if not places:
        return
    inside, key = rng.choice(places)
    if rng.random() < 0.2:
        del inside[key]
    else:
        inside[key] = copy.deepcopy(rng.choice(VALUES))  # changed itself, it would hold itself


def rewrite_json(content: bytes, rng: random.Random) -> bytes:
    """Change values; the digest, if there is one, then fits again, but for one in four."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        change_json(value, rng)
    if SEAL in value and rng.random() < 0.75:
        del value[SEAL]
        value[SEAL] = hash_value(value)
    return json.dumps(rng.choice([*VALUES, *[value] * 150])).encode()


def rewrite_lines(content: bytes, rng: random.Random) -> bytes:
    """Change the JSON of one line."""
    lines = content.split(b"\n")
    at = rng.choice([number for number, line in enumerate(lines) if line])
    lines[at] = rewrite_json(lines[at], rng)
    return b"\n".join(lines)


def rewrite_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change what stands behind a colon."""
    lines = content.split(b"\n")
    at = rng.choice([number for number, line in enumerate(lines) if b": " in line])
    name = lines[at].split(b": ")[0]
    lines[at] = name + b": " + json.dumps(rng.choice(VALUES)).encode()
    if rng.random() < 0.2:
        del lines[at]
    return b"\n".join(lines)


def rewrite_numbers(content: bytes, rng: random.Random) -> bytes:
    """Change one number of a text."""
    found = rng.choice(list(re.finditer(rb"\d+", content)))
    number = rng.choice((b"0", b"9" * 9, b"9" * 5000, b"-1", b"\xd9\xa3", b"", b"310P3", b"1 1"))
    return content[: found.start()] + number + content[found.end() :]


def change_weights(rng: random.Random) -> dict:
    """Weights of which one entry is not as it should be."""
    state: dict = {f"{name}": value.clone() for name, value in SMALL_NETWORK.items()}
    name = rng.choice(list(state))
    tensor = state[name]
    kinds = torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int32, torch.complex64
    kinds += torch.bool, torch.float8_e4m3fn
    match rng.randrange(9):
        case 0:
            del state[name]
        case 1:
            state[f"{name}.more"] = tensor.clone()
        case 2:
            state[name] = tensor.reshape(1, -1)
        case 3 | 4:
            state[name] = tensor.to(rng.choice(kinds))
        case 5:
            state[name] = torch.full_like(tensor.double(), rng.choice((1e300, 7, -1, float("nan"))))
        case 6:
            state[name] = tensor + 1
        case 7:
            state["num_batches_tracked.norm3."] = tensor.clone()
        case _:
            state = {name: value for name, value in state.items() if rng.random() < 0.9}
    prefix = rng.choice(("", "", "", "module.", "_orig_mod.", "model.module.", "x."))
    return {prefix + name: value for name, value in state.items()}


def rewrite_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Other tensors, or another value in the header, whose length is right."""
    state = change_weights(rng)
    packed = safetensors.torch.save(state, {"trained": "no"} if rng.random() < 0.2 else None)
    if rng.random() < 0.8:
        return packed
    size = int.from_bytes(packed[:8], "little")
    head = json.loads(packed[8 : 8 + size])
    change_json(head, rng)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + packed[8 + size :]


def rewrite_pth(content: bytes, rng: random.Random) -> bytes:
    """Other tensors and other things than tensors, or a changed pickle in a whole archive."""
    state = change_weights(rng)
    name = rng.choice(list(state) or ["a"])
    odd = (
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.nn.Parameter(torch.ones(1)),
    )
    match rng.randrange(8):
        case 0:
            state = {rng.choice(("state_dict", "model", "a")): state, "epoch": 3}
        case 1:
            state = {"state_dict": state, "model": state}
        case 2:
            state[name] = rng.choice([*VALUES, *odd])
        case 3:
            state[rng.choice((1, None, (1, 2), b"a"))] = torch.ones(1)
        case 4:
            state = rng.choice([*VALUES, argparse.Namespace(a=1), print, state.get(name)])
    with BytesIO() as file:
        torch.save(state, file, _use_new_zipfile_serialization=rng.random() < 0.8)
        packed = file.getvalue()
    if rng.random() < 0.7 or not packed.startswith(b"PK"):
        return packed
    with zipfile.ZipFile(BytesIO(packed)) as archive, BytesIO() as file:
        with zipfile.ZipFile(file, "w", rng.choice((0, 0, zipfile.ZIP_DEFLATED))) as changed:
            for entry in archive.namelist():
                held = archive.read(entry)
                if entry.endswith("data.pkl"):
                    held = mutate(held, rng, False)
                changed.writestr(entry, held + bytes(rng.choice((0, 0, 0, 5000))))
        return file.getvalue()
