"""Mutated files for every reader: a result or BadFile, quickly and within memory, and nothing else.

    make torture PART=readers            # goes on where the last run stopped
    python tests/torture/readers.py --inputs 100000 --only flo png [--out FILE]
    python tests/torture/readers.py --coverage      # which lines of the readers were reached
    python tests/torture/readers.py --atheris 60    # coverage-guided, seconds for each reader

Each input is a valid file with one to six mutations. Its number alone decides what it is, so a
failure is made again with ``--one READER NUMBER``, which leaves the file in the current folder.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import damage
import edges
import numpy as np
import safetensors.torch
import torch
from state import HOME, require_same_software

from gma_lib.ascend.ais_bench import read_summary
from gma_lib.ascend.chip import parse_mapping, parse_table
from gma_lib.data.guide_tensors import read_tensor, write_tensor
from gma_lib.flow import images
from gma_lib.flow.files import read_flow, read_flow_file, write_flow_file
from gma_lib.flow.images import read_header, read_mask, read_photo, write_mask
from gma_lib.infer.inference import LEDGER, read_hashes
from gma_lib.network import bundled, checkpoints
from gma_lib.pipeline.stamps import locate_stamp, read_stamp
from gma_lib.runs.files import PROJECT, BadFile, read_whole, reading
from gma_lib.runs.records import load_record, read_json, read_yaml, write_json
from gma_lib.runs.run import open_run
from gma_lib.training.config import load_config, load_recipe

SLOWEST_S = 2.0
SLACK_BYTES = 64 * 2**20  # what decoders allocate for the smallest picture
GROUP = 100  # inputs between two looks at the memory
PLACED = 500  # one input in so many is no file: a folder, a pipe, nothing
SHARES = dict.fromkeys(("flo", "kitti", "npy", "png", "bin", "safetensors"), 10)
SHARES |= {"training": 0.1, "recipe": 0.01}  # the inputs of others, times this
STATE = HOME / "readers.json"
EXPECTED = "a valid one"


@dataclasses.dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Attributes
    ----------
    seeds
        Valid files.
    read
        Takes the path of a damaged one.
    name
        The file's name, whose suffix some readers look at.
    header
        Regular expression of the refusals that end in the header.
    rewrite
        Changes what a file says, and keeps its form; None: only bytes are changed.
    is_text
        Whether tokens are inserted too.
    edges
        Files for refusals that mutations do not reach.
    """

    seeds: list[bytes]
    read: Callable[[Path], object]
    name: str
    header: str = "$^"
    rewrite: damage.Rewrite | None = None
    is_text: bool = False
    edges: tuple[bytes, ...] = ()

    @property
    def first(self) -> list[bytes | str]:
        """The first inputs: what is no file, the valid files, and the edges."""
        return [*damage.PLACES, *self.seeds, *self.edges]


def refuse_empty(found: object, path: Path) -> object:
    """For readers that take what is whole and leave the rest: nothing at all is a refusal."""
    if not found:
        raise BadFile(path, "nothing in it is whole", EXPECTED)
    return found


def read_chips(path: Path) -> object:
    with reading(path, EXPECTED):
        text = read_whole(path).decode(errors="replace")
        return refuse_empty(parse_mapping(text) + parse_table(text), path)


def parse(path: Path) -> object:
    with reading(path, EXPECTED):
        return read_yaml(path)


def read_meanwhile_replaced(path: Path) -> object:
    """Read a picture that becomes one of another size once its header is known."""
    other = damage.save_bytes(lambda one: write_mask(one, np.ones((3, 9), bool)), "a.png")

    def then_replace(*given: object, **named: object) -> object:
        header = read_header(*given, **named)
        path.write_bytes(other)
        return header

    with mock.patch.object(images, "read_header", then_replace):
        return read_photo(path)


def read_as_bundled(path: Path) -> object:
    """Read weights under the name of bundled ones, whose card knows another hash."""
    with mock.patch.object(bundled, "WEIGHTS_FOLDER", path.parent):
        path.with_suffix(".json").write_text('{"sha256": "0"}')
        return checkpoints.load_checkpoint(path.stem)


def make_readers(folder: Path) -> dict[str, Reader]:
    """All readers with valid files of each."""
    flow = np.random.default_rng(0).normal(0, 20, (2, 8, 8)).astype(np.float32)

    def flows(name: str) -> bytes:
        return damage.save_bytes(lambda path: write_flow_file(path, flow), name)

    def array(values: np.ndarray) -> bytes:
        return damage.save_bytes(lambda path: np.save(path, values), "a.npy")

    def text(seeds: list[bytes], read: Callable, name: str, header: str, rewrite) -> Reader:
        return Reader(seeds, read, name, header, rewrite, is_text=True)

    run = open_run(
        profile="tiny", backend="torch", precision="float32", batch_size=1, run="t", outputs=folder
    )
    stamp = {"stage": "01_data", "status": "ok", "reason": "", "seconds": 1.5, "parameters": {}}
    stamp |= {"consumed": {"a": "b"}, "products": {"c": "d"}, "provenance": {"a": "b"}}
    summary = {"npu_compute_time_list": [1.0, [1.0, 2.5]], "throughput": 100.0}
    summary |= {"H2D_latency": {"mean": 5.0, "count": 2}, "D2H_latency": {"mean": 3.0, "count": 1}}
    mapping = b"NPU ID Chip ID Chip Logic ID Chip Name\n 0 0 0 Ascend 310P3\n 0 1 - Mcu\n"
    table = b"| 0  310P3 | OK | 10.2 40 |\n| 0  0 | 0000:01 | 0  1236 / 21534 |\nProcess id\n"
    ledger = b'\n{"pair": "clean/a/frame_0001", "key": "k", "sha256": "00"}' * 3
    record = damage.save_bytes(lambda path: write_json(path, {"a": [1, {"b": None}]}), "a.json")
    no_json = "JSONDecodeError|UnicodeDecodeError|RecursionError|nothing in it"
    training, recipe = (
        (PROJECT / "params" / name).read_bytes() for name in ("train.yaml", "recipe.yaml")
    )

    def read_stamp_at(path: Path) -> object:
        if stamp := read_stamp("01_data", run):
            return stamp
        try:
            found = f"{type(read_json(path, made_by='01_data')).__name__} is no stamp"
        except FileNotFoundError as error:
            raise BadFile(path, str(error), EXPECTED) from None
        except ValueError as error:
            found = error.args[1] if isinstance(error, BadFile) else str(error).split(" ", 1)[1]
        raise BadFile(path, found, EXPECTED)

    weights = {name: value for name, value in damage.SMALL_NETWORK.items() if "norm3" not in name}
    wrapped = {"state_dict": {f"module.{name}": value for name, value in weights.items()}}
    pickles = [
        damage.save_bytes(lambda path, held=held: torch.save(held, path), "a")
        for held in (weights, wrapped)
    ]
    npy = [array(flow), array(np.asfortranarray(flow.astype(float))), array(flow.astype("f2"))]
    tensor = damage.save_bytes(lambda path: write_tensor(path, flow), "a.bin")
    not_picture = "not a readable|px; at most|at most .* pixels are read"
    pictures = damage.make_pictures()
    place = str(locate_stamp("01_data", run).relative_to(folder))
    is_zip = "BadZipFile|not a ZIP|PytorchStreamReader|zip archive|RuntimeError"
    readers = {
        "flo": Reader(
            [flows("a.flo")], read_flow, "a.flo", "too few|its tag|at most", damage.rewrite_flo
        ),
        "npy": Reader(
            npy,
            read_flow_file,
            "a.npy",
            "magic|at most|version|of shape|Error",
            damage.rewrite_npy,
        ),
        "kitti": Reader(
            [flows("a.png"), pictures["mask"][0]],
            read_flow_file,
            "a.png",
            not_picture,
            damage.rewrite_png,
        ),
        "flow of another name": Reader([flows("a.flo")], read_flow_file, "a.flow"),
        "picture replaced": Reader(
            pictures["png"], read_meanwhile_replaced, "a.png", not_picture, damage.rewrite_png
        ),
        "mask": Reader(pictures.pop("mask"), read_mask, "a.png", not_picture, damage.rewrite_png),
        "bin": Reader([tensor], lambda path: read_tensor(path, flow.shape), "a.bin"),
        "safetensors": Reader(
            [safetensors.torch.save(weights)],
            checkpoints.load_checkpoint,
            "a.safetensors",
            "SafetensorError",
            damage.rewrite_safetensors,
        ),
        "pth": Reader(pickles, checkpoints.load_checkpoint, "a.pth", is_zip, damage.rewrite_pth),
        "bundled": Reader(
            [safetensors.torch.save(weights)],
            read_as_bundled,
            "a.safetensors",
            "SafetensorError",
            damage.rewrite_safetensors,
        ),
        "stamp": text(
            [damage.save_bytes(lambda path: write_json(path, stamp), "a")],
            read_stamp_at,
            place,
            no_json,
            damage.rewrite_json,
        ),
        "ledger": text(
            [ledger],
            lambda path: refuse_empty(read_hashes(path.parent), path),
            LEDGER,
            no_json,
            damage.rewrite_lines,
        ),
        "record": text(
            [record],
            lambda path: load_record(path, "a record"),
            "a.json",
            no_json,
            damage.rewrite_json,
        ),
        "yaml": text(
            [(PROJECT / "params" / name).read_bytes() for name in ("common.yaml", "tiny.yaml")],
            parse,
            "a.yaml",
            "not readable YAML",
            damage.rewrite_yaml,
        ),
        "training": text(
            [re.sub(rb" +#.*", b"", training)],
            load_config,
            "a.yaml",
            "not readable YAML|Unicode",
            damage.rewrite_yaml,
        ),
        "recipe": text(
            [re.sub(rb"(?m)#.*", b"", recipe)],
            load_recipe,
            "a.yaml",
            "not readable YAML|Unicode",
            damage.rewrite_yaml,
        ),
        "summary": text(
            [json.dumps(summary).encode()], read_summary, "a.json", no_json, damage.rewrite_json
        ),
        "npu-smi": text(
            [mapping, table], read_chips, "a.txt", "nothing in it", damage.rewrite_numbers
        ),
    }
    for name, seeds in pictures.items():
        rewrite = damage.rewrite_png if "png" in name else None
        readers[name] = Reader(seeds, read_photo, f"a.{name.split()[0]}", not_picture, rewrite)
    found = edges.make_edges()
    return {
        name: dataclasses.replace(reader, edges=found.get(name, ()))
        for name, reader in readers.items()
    }


# --- one input ------------------------------------------------------------------------------------


def make_input(reader: Reader, name: str, number: int) -> bytes | str:
    """The damaged file of a number, or the name of what lies there instead of a file."""
    if number < len(reader.first):
        return reader.first[number]
    rng = random.Random(f"{name} {number}")
    if rng.randrange(PLACED) == 0:
        return rng.choice(list(damage.PLACES))
    seed = rng.choice(reader.seeds)
    if reader.rewrite and rng.random() < 0.6:
        return reader.rewrite(seed, rng)
    return damage.mutate(seed, rng, reader.is_text)


def put(path: Path, content: bytes | str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.unlink(missing_ok=True)
        damage.PLACES[content](path)


def attempt(
    reader: Reader, folder: Path, content: bytes | str, again: int = 3
) -> tuple[str, float]:
    """Read one input: (what came, seconds); AssertionError for what must not come.

    A slow one is read ``again``: the machine may have been busy.
    """
    path = folder / reader.name
    put(path, content)
    message, started = "", time.perf_counter()
    try:
        reader.read(path)
        outcome = "result"
    except BadFile as error:
        outcome = re.sub(r"[0-9][0-9,.]*", "N", str(error.args[1]))[:60]
        message = str(error)
    seconds = time.perf_counter() - started
    if isinstance(content, str):
        path.rmdir() if content == "folder" else path.unlink(missing_ok=True)
    assert len(message.splitlines()) <= 1, repr(message)
    if seconds >= SLOWEST_S and again:
        return attempt(reader, folder, content, again - 1)
    assert seconds < SLOWEST_S, f"{seconds:.1f} s: {outcome}"
    return outcome, seconds


class Memory:
    """The most memory since ``reset``."""

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read()

    def count_more(self) -> int:
        return self._read() - self.before

    def _read(self) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024


def allowed_bytes(path: Path) -> int:
    """Six times what the picture's header says, and what decoders need for any."""
    try:
        header = read_header(path)
    except BadFile:
        return SLACK_BYTES
    return 18 * header.height * header.width + SLACK_BYTES


def read_many(
    name: str, start: int, count: int, state: dict | None = None, most_s: float = 1e9
) -> dict:
    """Read inputs ``start`` to ``start + count``, or as many as there is time for, and add them to
    what is known of a reader.
    """
    state = state or {"inputs": 0, "outcomes": {}, "past_header": 0, "slowest_s": 0, "most_mb": 0}
    outcomes, memory, end = Counter(state["outcomes"]), Memory(), time.monotonic() + most_s
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        reader = make_readers(folder)[name]
        (folder / reader.name).parent.mkdir(parents=True, exist_ok=True)
        for first in range(start, start + count, GROUP):
            if time.monotonic() > end:
                break
            group = range(first, min(first + GROUP, start + count))
            memory.reset()
            for number in group:
                outcome, seconds = read_number(reader, folder, name, number)
                outcomes[outcome] += 1
                state["inputs"] += 1
                state["past_header"] += not re.search(reader.header, outcome)
                state["slowest_s"] = max(state["slowest_s"], round(seconds, 3))
            if memory.count_more() > SLACK_BYTES:
                find_large(reader, folder, name, group)
            state["most_mb"] = max(state["most_mb"], round(memory.count_more() / 1e6, 1))
    return state | {"outcomes": dict(outcomes.most_common(100))}


def read_number(reader: Reader, folder: Path, name: str, number: int) -> tuple[str, float]:
    content = make_input(reader, name, number)
    try:
        return attempt(reader, folder, content)
    except Exception as error:
        if isinstance(content, bytes):
            (Path.cwd() / f"failed-{name}-{number}").write_bytes(content)
        kind = f" ({content})" if isinstance(content, str) else ""
        found = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{name} {number}{kind}: {found}") from error


def find_large(reader: Reader, folder: Path, name: str, numbers: range) -> None:
    """Read inputs again, one by one; AssertionError for one that takes too much memory."""
    memory = Memory()
    for number in numbers:
        memory.reset()
        outcome, _ = read_number(reader, folder, name, number)
        if (used := memory.count_more()) > SLACK_BYTES:
            put(folder / reader.name, make_input(reader, name, number))
            most = allowed_bytes(folder / reader.name)
            assert used < most, f"{name} {number}: {used / 1e6:.0f} MB: {outcome}"


# --- many -----------------------------------------------------------------------------------------


def find_small_entries() -> dict:
    """Stand in for ``checkpoints._find_entries``: the network's entries are too many to be read a
    million times.
    """
    return damage.SMALL_NETWORK


def quiet() -> None:
    """Decoders write what they think of damaged files to the terminal."""
    cv2.utils.logging.setLogLevel(0)
    logging.disable()
    warnings.simplefilter("ignore")


def torture(names: list[str], inputs: int, part: int = 200_000) -> dict:
    """Read ``part`` inputs per reader in turn, or for 200 s, each in a process, until each has
    its number. Return what each found.
    """
    require_same_software()
    state = json.loads(STATE.read_text()) if STATE.is_file() else {}
    wanted = {name: int(inputs * SHARES.get(name, 1)) for name in names}
    while todo := [name for name in names if state.get(name, {}).get("inputs", 0) < wanted[name]]:
        for name in todo:
            known = state.get(name)
            start = known["inputs"] if known else 0
            count = min(part, wanted[name] - start)
            command = [sys.executable, __file__, "--part", name, str(start), str(count)]
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
    return state


def summarise(known: dict) -> dict:
    """What a page shows of a reader: a refusal's text is left out, of which there are many."""
    results = known["outcomes"].get("result", 0)
    refusals = len(known["outcomes"]) - bool(results)
    shown = {name: known[name] for name in ("inputs", "past_header", "slowest_s", "most_mb")}
    return shown | {"results": results, "refusals": refusals}


def show(name: str, known: dict) -> None:
    results = known["outcomes"].get("result", 0)
    print(
        f"{name:12} {known['inputs']:>9,} inputs, {results:>9,} results, "
        f"{known['past_header'] / known['inputs']:4.0%} past the header, "
        f"{len(known['outcomes']) - bool(results):>3} kinds of refusal, "
        f"at most {known['slowest_s']:.2f} s and {known['most_mb']:.0f} MB",
        flush=True,
    )


# the functions that read what others made
READING = {
    "flow/files": "check_flow_suffix read_flow_file read_flow read_kitti_flow _read_npy",
    "flow/images": "check_pixels read_header decode_image _require_one_picture _check_content"
    " read_photo read_mask decode_values",
    "data/guide_tensors": "read_tensor",
    "network/checkpoints": "load_checkpoint decode_tensors _unwrap _complete_state _check_entry",
    "runs/files": "reading read_whole",
    "runs/records": "read_json load_record read_yaml parse_yaml",
    "infer/inference": "read_hashes",
    "runs/ledger": "read_entries read_hashes",
    "pipeline/stamps": "read_stamp",
    "training/config": "load_config load_recipe check_entries _check",
    "ascend/ais_bench": "read_summary",
    "ascend/chip": "parse_mapping parse_table",
}


def cover(names: list[str], inputs: int) -> list[str]:
    """Print how much of each reader was reached, and return every refusal that was not."""
    import coverage

    files = {module: str(PROJECT / "gma_lib" / f"{module}.py") for module in READING}
    measured = coverage.Coverage(config_file=False, include=list(files.values()), data_file=None)
    measured.start()
    with tempfile.TemporaryDirectory() as place:
        fewest = {name: len(one.first) for name, one in make_readers(Path(place)).items()}
    for name in names:
        count = int(inputs * min(1, SHARES.get(name, 1)))
        show(name, read_many(name, 0, max(fewest[name], count)))
    measured.stop()
    never = []
    for module, functions in READING.items():
        reached = set(measured.get_data().lines(files[module]) or ())
        for function in ast.walk(ast.parse(Path(files[module]).read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name not in functions.split():
                continue
            statements = [
                node
                for node in ast.walk(function)
                if isinstance(node, ast.stmt) and node not in (function, function.body[0])
            ] or function.body
            refusals = [
                node
                for node in statements
                if (isinstance(node, ast.Raise) and node.exc) or isinstance(node, ast.Continue)
            ]
            missed = [node for node in statements if node.lineno not in reached]
            left = [f"{module}.py:{node.lineno}" for node in missed if node in refusals]
            never += left
            print(
                f"{module}.{function.name}: {len(statements) - len(missed)} of {len(statements)} "
                f"statements, {len(refusals) - len(left)} of {len(refusals)} refusals"
                f"{', not ' * bool(missed)}{', '.join(str(node.lineno) for node in missed)}"
            )
    return never


def guide(name: str, seconds: int) -> None:
    """Let atheris choose the inputs, by the branches of Python that they reach."""
    import atheris

    for module in [one for key, one in sys.modules.items() if key.startswith("gma_lib")]:
        for function in vars(module).values():  # all that is loaded would take minutes
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    corpus = STATE.parent / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        reader = make_readers(folder)[name]
        (folder / reader.name).parent.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(reader.seeds):
            (corpus / f"seed{number}").write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=10", str(corpus)]
        atheris.Setup([name, *options], lambda data: attempt(reader, folder, data) and None)
        atheris.Fuzz()  # ends the process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs",
        type=int,
        default=5_000,
        help="for each reader; ten times as many for quick ones",
    )
    parser.add_argument("--only", nargs="*", help="readers")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--one", nargs=2, metavar=("READER", "NUMBER"))
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    checkpoints._find_entries = find_small_entries
    with tempfile.TemporaryDirectory() as place:
        readers = make_readers(Path(place))
    names = options.only or list(readers)
    if options.part:
        name, start, count = options.part
        print(json.dumps(read_many(name, int(start), int(count), json.load(sys.stdin), 200)))
    elif options.one:
        name, number = options.one
        content = make_input(readers[name], name, int(number))
        Path(f"{name}-{number}-{readers[name].name}").write_bytes(content)
        print(read_many(name, int(number), 1)["outcomes"])
    elif options.atheris and len(names) == 1:
        guide(names[0], options.atheris)
    elif options.atheris:
        for name in names:
            command = [sys.executable, __file__, "--atheris", str(options.atheris), "--only", name]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            runs = re.search(r"stat::number_of_executed_units: *(\d+)|Done (\d+) runs", done.stderr)
            if done.returncode or not runs:
                sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-1500:]}")
            print(f"{name}: {int(runs[1] or runs[2]):,} inputs", flush=True)
    elif options.coverage:
        print("\nnever reached:", ", ".join(cover(names, min(options.inputs, 20_000))) or "none")
    else:
        state = torture(names, options.inputs)
        if options.out:
            write_json(options.out, {"readers": {name: summarise(state[name]) for name in names}})


if __name__ == "__main__":
    main()
