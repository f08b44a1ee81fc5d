"""Mutated files for every reader: a result or BadFile, quickly and within memory, and nothing else.

    make torture PART=readers            # goes on where the last run stopped
    python tests/torture/readers.py --inputs 100000 --only flo png
    python tests/torture/readers.py --coverage      # which lines of the readers were reached
    python tests/torture/readers.py --atheris 60    # coverage-guided, seconds for each reader

Each input is a valid file with one to six mutations. Its number alone decides what it is, so a
failure is made again with ``--one READER NUMBER``, which leaves the file in the current folder.
"""

import argparse
import dataclasses
import json
import logging
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from PIL import Image

from gma_lib.ascend.ais_bench import read_summary
from gma_lib.ascend.chip import parse_mapping, parse_table
from gma_lib.data.guide_tensors import read_tensor, write_tensor
from gma_lib.flow.files import read_flow, read_flow_file, write_flow_file
from gma_lib.flow.images import read_header, read_mask, read_photo
from gma_lib.infer.inference import LEDGER, read_hashes
from gma_lib.network.checkpoints import load_checkpoint
from gma_lib.pipeline.stamps import locate_stamp, read_stamp
from gma_lib.runs.files import PROJECT, BadFile
from gma_lib.runs.records import load_record, parse_yaml, write_json
from gma_lib.runs.run import open_run
from gma_lib.training.config import load_config

SLOWEST_S = 2.0
SLACK_BYTES = 64 * 2**20  # what decoders allocate for the smallest picture
MOST_BYTES = 18 * 2**26 + SLACK_BYTES
TENFOLD = ("flo", "kitti", "npy", "png", "bin", "safetensors")  # the inputs of others, times ten
STATE = PROJECT / "outputs" / "torture" / "readers.json"
TOKENS = [
    *(b"null", b"[]", b"{}", b"NaN", b"-1", b"1e999", b'"x"', b"\xff\xfe", b"\xc2\xb2", b"\0"),
    *(b"[" * 3000, b"&a [*a]", b"!!binary x", b"9" * 5000, b" " * 20000, b"\n", b"|", b"1 / 2"),
]
NUMBERS = [0, 1, 2, 7, 127, 255, 2**15, 2**16 - 1, 2**26, 2**31 - 1, 2**31, 2**32 - 1]


@dataclasses.dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Attributes
    ----------
    seeds
        Valid files.
    read
        Takes the path of a mutated one.
    name
        The file's name, whose suffix some readers look at.
    header
        Regular expression of the refusals that end in the header.
    is_text
        Whether tokens are inserted too.
    """

    seeds: list[bytes]
    read: Callable[[Path], object]
    name: str
    header: str = "$^"
    is_text: bool = False


def saved(save: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def pickled(content: object) -> bytes:
    return saved(lambda path: torch.save(content, path), "a")


def make_readers(folder: Path) -> dict[str, Reader]:
    """All readers with valid files of each."""
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 20, (2, 12, 10)).astype(np.float32)
    colours = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (20, 16))
    picture = Image.fromarray(colours)
    deep = colours.astype(np.uint16) * 257

    def flows(name: str) -> bytes:
        return saved(lambda path: write_flow_file(path, flow), name)

    def array(values: np.ndarray) -> bytes:
        return saved(lambda path: np.save(path, values), "a.npy")

    def image(name: str, mode: str = "RGB", **options: object) -> bytes:
        return saved(lambda path: picture.convert(mode).save(path, **options), name)

    def opencv(name: str, values: np.ndarray) -> bytes:
        return saved(lambda path: cv2.imwrite(str(path), values), name)

    several = {"save_all": True, "append_images": [picture.rotate(180)]}
    weights = {"module.att.gamma": torch.ones(1), "module.fnet.conv1.weight": torch.ones(2, 3)}
    wrapped = {"state_dict": weights, "epoch": 3}
    run = open_run(
        profile="tiny", backend="torch", precision="float32", batch_size=1, run="t", outputs=folder
    )
    stamp = {"stage": "01_data", "status": "ok", "reason": "", "seconds": 1.5, "parameters": {}}
    stamp |= {"consumed": {"a": "b"}, "products": {"c": "d"}, "schema": 3, "provenance": None}
    summary = {"npu_compute_time_list": [1.0, [1.0, 2.5]], "throughput": 100.0}
    summary |= {"H2D_latency": {"mean": 5.0, "count": 2}, "D2H_latency": {"mean": 3.0, "count": 1}}
    mapping = b"NPU ID Chip ID Chip Logic ID Chip Name\n 0 0 0 Ascend 310P3\n 0 1 - Mcu\n"
    table = b"| 0  310P3 | OK | 10.2 40 |\n| 0  0 | 0000:01 | 0  1236 / 21534 |\nProcess id\n"
    ledger = b'\n{"pair": "clean/a/frame_0001", "key": "k", "sha256": "00"}' * 3
    not_picture = "not a readable|px; at most|at most .* pixels are read"

    def read_stamp_at(path: Path) -> object:
        place = locate_stamp("01_data", run)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
        return read_stamp("01_data", run)

    def read_ledger_at(path: Path) -> object:
        path.replace(path.with_name(LEDGER))
        return read_hashes(path.parent)

    def read_chips(path: Path) -> object:
        text = path.read_text(errors="replace")
        return parse_mapping(text), parse_table(text)

    def parse(path: Path) -> object:
        try:
            return parse_yaml(path.read_text(errors="replace"))
        except ValueError as error:
            raise BadFile(path, str(error), "YAML") from error

    pictures = {
        "png": [image("a.png"), image("a.png", "LA"), image("a.png", "P"), opencv("a.png", deep)],
        "png animated": [image("a.png", **several)],
        "jpg": [image("a.jpg"), image("a.jpg", progressive=True), image("a.jpg", "CMYK")],
        "gif": [image("a.gif", "P"), image("a.gif", **several)],
        "tif": [image("a.tif"), image("a.tif", compression="tiff_lzw"), opencv("a.tif", deep)],
        "ppm": [image("a.ppm"), b"P5 4 3 4095\n" + bytes(24), b"P3 2 1 9\n1 2 3 4 5 6\n"],
        "webp": [image("a.webp"), image("a.webp", lossless=True), image("a.webp", **several)],
        "bmp": [image("a.bmp"), image("a.bmp", "P")],
    }
    npy = [array(flow), array(np.asfortranarray(flow.astype(float))), array(flow.astype("f2"))]
    readers = {
        "flo": Reader([flows("a.flo")], read_flow, "a.flo", "too few|its tag|at most"),
        "npy": Reader(npy, read_flow_file, "a.npy", "magic|at most|version|of shape|Error"),
        "kitti": Reader([flows("a.png")], read_flow_file, "a.png", not_picture),
        "mask": Reader(
            [opencv("a.png", deep[..., 0]), image("a.png", "1")], read_mask, "a.png", not_picture
        ),
        "bin": Reader(
            [saved(lambda path: write_tensor(path, flow), "a.bin")],
            lambda path: read_tensor(path, flow.shape),
            "a.bin",
        ),
        "safetensors": Reader([safetensors.torch.save(weights)], load_checkpoint, "a.safetensors"),
        "pth": Reader(
            [pickled(weights), pickled(wrapped)],
            load_checkpoint,
            "a.pth",
        ),
        "stamp": Reader([json.dumps(stamp).encode()], read_stamp_at, "a.json", is_text=True),
        "ledger": Reader([ledger], read_ledger_at, "a.jsonl", is_text=True),
        "record": Reader(
            [saved(lambda path: write_json(path, {"a": [1, {"b": None}]}), "a.json")],
            lambda path: load_record(path, "a record"),
            "a.json",
            is_text=True,
        ),
        "yaml": Reader(
            [(PROJECT / "params" / name).read_bytes() for name in ("common.yaml", "tiny.yaml")],
            parse,
            "a.yaml",
            is_text=True,
        ),
        "training": Reader(
            [(PROJECT / "params" / "train.yaml").read_bytes()], load_config, "a.yaml", is_text=True
        ),
        "summary": Reader([json.dumps(summary).encode()], read_summary, "a.json", is_text=True),
        "npu-smi": Reader([mapping, table], read_chips, "a.txt", is_text=True),
    }
    return readers | {
        name: Reader(seeds, read_photo, f"a.{name.split()[0]}", not_picture)
        for name, seeds in pictures.items()
    }


# --- mutations ------------------------------------------------------------------------------------


def mutate(content: bytes, rng: random.Random, is_text: bool) -> bytes:
    """One to six changes; two in three spare the first bytes, which name the format."""
    data = bytearray(content)
    spared = min(len(data), 16) if rng.random() < 0.67 else 0
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if len(data) <= spared:
            break
        at = rng.randrange(spared, len(data))
        rng.choice(MUTATIONS + [insert_token] * 6 * is_text)(data, at, rng)
    return repair_png(bytes(data)) if rng.random() < 0.8 else bytes(data)


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def replace(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def write_number(data: bytearray, at: int, rng: random.Random) -> None:
    form = rng.choice(("<I", ">I", "<H", ">H"))
    data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(NUMBERS) & 0xFFFF)


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


MUTATIONS = [flip, flip, replace, replace, write_number, write_long, cut, remove, double, insert]


def repair_png(data: bytes) -> bytes:
    """The checksums of a PNG, or every mutation would end there."""
    if data[:4] != b"\x89PNG":
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        chunk = data[at + 4 : at + 8 + size]
        parts += [data[at : at + 4], chunk, zlib.crc32(chunk).to_bytes(4)]
        at += 12 + size
    return b"".join(parts) + data[at:]


# --- one input ------------------------------------------------------------------------------------


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def allowed_bytes(path: Path) -> int:
    """Six times what the picture's header says, and what decoders need for any."""
    try:
        header = read_header(path)
    except BadFile:
        return SLACK_BYTES
    return 18 * header.height * header.width + SLACK_BYTES


def attempt(reader: Reader, folder: Path, content: bytes) -> tuple[str, float, int]:
    """Read one input: (what came, seconds, bytes); AssertionError for what must not come."""
    path = folder / reader.name
    path.write_bytes(content)
    Path("/proc/self/clear_refs").write_text("5")
    message, before, started = "", peak_bytes(), time.perf_counter()
    try:
        reader.read(path)
        outcome = "result"
    except BadFile as error:
        outcome = re.sub(r"[0-9][0-9,.]*", "N", str(error.args[1]))[:60]
        message = str(error)
    seconds, used = time.perf_counter() - started, peak_bytes() - before
    assert len(message.splitlines()) <= 1, repr(message)
    assert seconds < SLOWEST_S, f"{seconds:.1f} s: {outcome}"
    if used > SLACK_BYTES:
        path.write_bytes(content)
        assert used < allowed_bytes(path), f"{used / 1e6:.0f} MB: {outcome}"
    return outcome, seconds, used


def make_input(reader: Reader, name: str, number: int) -> bytes:
    rng = random.Random(f"{name} {number}")
    return mutate(rng.choice(reader.seeds), rng, reader.is_text)


def read_many(name: str, start: int, count: int, state: dict | None = None) -> dict:
    """Read inputs ``start`` to ``start + count`` and add them to what is known of a reader."""
    state = state or {"inputs": 0, "outcomes": {}, "past_header": 0, "slowest_s": 0, "most_mb": 0}
    outcomes = Counter(state["outcomes"])
    with tempfile.TemporaryDirectory() as place:
        reader = make_readers(Path(place) / "outputs")[name]
        for number in range(start, start + count):
            content = make_input(reader, name, number)
            try:
                outcome, seconds, used = attempt(reader, Path(place), content)
            except Exception as error:
                (Path.cwd() / f"failed-{name}-{number}").write_bytes(content)
                raise AssertionError(f"{name} {number}: {type(error).__name__}: {error}") from error
            outcomes[outcome] += 1
            state["inputs"] += 1
            state["past_header"] += not re.search(reader.header, outcome)
            state["slowest_s"] = max(state["slowest_s"], round(seconds, 3))
            state["most_mb"] = max(state["most_mb"], round(used / 1e6, 1))
    return state | {"outcomes": dict(outcomes.most_common(60))}


# --- many -----------------------------------------------------------------------------------------


def quiet() -> None:
    """Decoders write what they think of damaged files to the terminal."""
    cv2.utils.logging.setLogLevel(0)
    logging.disable()
    warnings.simplefilter("ignore")


def torture(names: list[str], inputs: int, part: int = 2000) -> None:
    """Read ``part`` inputs per reader in turn, each in a process, until each has its number."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    state = json.loads(STATE.read_text()) if STATE.is_file() else {}
    wanted = {name: inputs * (10 if name in TENFOLD else 1) for name in names}
    while todo := [name for name in names if state.get(name, {}).get("inputs", 0) < wanted[name]]:
        for name in todo:
            known = state.get(name)
            start = known["inputs"] if known else 0
            command = [sys.executable, __file__, "--part", name, str(start), str(part)]
            done = subprocess.run(
                command, capture_output=True, text=True, input=json.dumps(known), cwd=STATE.parent
            )
            if done.returncode:  # a crash of a decoder too
                sys.exit(
                    f"{name}, from {start}: exit code {done.returncode}\n{done.stderr[-1500:]}"
                )
            state[name] = json.loads(done.stdout.splitlines()[-1])
            STATE.write_text(json.dumps(state, indent=1))
            show(name, state[name])


def show(name: str, known: dict) -> None:
    results = known["outcomes"].get("result", 0)
    print(
        f"{name:12} {known['inputs']:>9,} inputs, {results:>9,} results, "
        f"{known['past_header'] / known['inputs']:4.0%} past the header, "
        f"{len(known['outcomes']) - bool(results):>3} kinds of refusal, "
        f"at most {known['slowest_s']:.2f} s and {known['most_mb']:.0f} MB",
        flush=True,
    )


def cover(names: list[str], inputs: int) -> None:
    """Print the lines of the readers that no input reached."""
    import coverage

    modules = ["flow/files", "flow/images", "network/checkpoints", "data/guide_tensors"]
    modules += ["ascend/chip", "runs/records"]
    measured = coverage.Coverage(include=[f"*/gma_lib/{module}.py" for module in modules])
    measured.start()
    for name in names:
        show(name, read_many(name, 0, inputs))
    measured.stop()
    measured.report(show_missing=True)


def guide(name: str, seconds: int) -> None:
    """Let atheris choose the inputs, by the branches of Python that they reach."""
    import atheris

    atheris.instrument_all()
    corpus = STATE.parent / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        reader = make_readers(Path(place) / "outputs")[name]
        for number, seed in enumerate(reader.seeds):
            (corpus / f"seed{number}").write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=10", str(corpus)]
        atheris.Setup([name, *options], lambda data: attempt(reader, Path(place), data) and None)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs",
        type=int,
        default=100_000,
        help="for each reader; ten times as many for simple ones",
    )
    parser.add_argument("--only", nargs="*", help="readers")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--one", nargs=2, metavar=("READER", "NUMBER"))
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as place:
        readers = make_readers(Path(place))
    names = options.only or list(readers)
    if options.part:
        name, start, count = options.part
        print(json.dumps(read_many(name, int(start), int(count), json.load(sys.stdin))))
    elif options.one:
        name, number = options.one
        content = make_input(readers[name], name, int(number))
        Path(f"{name}-{number}-{readers[name].name}").write_bytes(content)
        print(read_many(name, int(number), 1)["outcomes"])
    elif options.atheris:
        for name in names:
            guide(name, options.atheris)
    elif options.coverage:
        cover(names, min(options.inputs, 2000))
    else:
        torture(names, options.inputs)


if __name__ == "__main__":
    main()
