"""``atc``: from ONNX to the ``.om`` that one kind of chip loads."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from gma_lib.ascend.chip import to_soc_version
from gma_lib.ascend.errors import explain_atc_error
from gma_lib.ascend.tool import Watch, run_tool
from gma_lib.runs import (
    BadFile,
    DoesNotFit,
    Record,
    hash_file,
    load_record,
    make_plain,
    write_atomically,
    write_text,
)
from gma_lib.runs.leftovers import temporary_folder

SUCCESS = "ATC run success"
TIMEOUT_S = 7200  # a compilation that takes longer is stopped
# ONNX operator -> the names that Ascend's own representation gives it, which is what keep.cfg
# wants. Others keep their name.
IR_TYPES = {
    "InstanceNormalization": ("InstanceNorm",),
    "GridSample": ("GridSampler2D",),
    "Conv": ("Conv2D",),
    "MatMul": ("MatMul", "MatMulV2", "BatchMatMul", "BatchMatMulV2"),
}
SIMULATED = b"SIMULATED"  # the first bytes of what a stand-in for atc writes; no real .om begins so


class AtcError(RuntimeError):
    """atc did not make a model; the message says why and what to do."""


@dataclass(frozen=True)
class AtcOptions:
    """What ``atc`` is told of chip and precision, with the guide's value as default.

    Attributes
    ----------
    soc
        The chip; the prefix ``Ascend`` may be there or not.
    precision_mode
        None: not passed, as in the guide; atc then takes ``force_fp16``. Also
        ``allow_mix_precision``, ``must_keep_origin_dtype``, ...
    precision_mode_v2
        From CANN 7.0 on, instead of ``precision_mode``: ``mixed_float16``, ``cube_fp16in_fp32out``,
        ...
    keep_dtype
        Lines of keep.cfg: what stays float32. ``OpType::`` and Ascend's name of an operator, or the
        name of a node.
    """

    soc: str
    precision_mode: str | None = None
    precision_mode_v2: str | None = None
    keep_dtype: tuple[str, ...] = ("OpType::InstanceNorm",)

    def __post_init__(self) -> None:
        if self.precision_mode and self.precision_mode_v2:
            raise ValueError("precision_mode and precision_mode_v2 exclude each other: give one")
        keeps_all = {self.precision_mode, self.precision_mode_v2} & {
            "must_keep_origin_dtype",
            "origin",
        }
        if keeps_all and self.keep_dtype:
            raise ValueError(f"keep_dtype has no effect with {keeps_all.pop()}: give keep_dtype=()")


def build_atc_command(
    model: str,
    output: str,
    shapes: Mapping[str, tuple[int, ...]],
    options: AtcOptions,
    keep_file: str = "keep.cfg",
) -> list[str]:
    """The command line, argument by argument, in the guide's order. It is run without a shell, so
    ';' needs no quotes.
    """
    shape = ";".join(f"{name}:{','.join(map(str, sides))}" for name, sides in shapes.items())
    modes = {
        "precision_mode": options.precision_mode,
        "precision_mode_v2": options.precision_mode_v2,
    }
    return [
        "atc",
        "--framework=5",  # ONNX
        f"--input_shape={shape}",
        f"--output={output}",
        f"--soc_version={to_soc_version(options.soc)}",
        *([f"--keep_dtype={keep_file}"] if options.keep_dtype else []),
        f"--model={model}",
        *(f"--{name}={mode}" for name, mode in modes.items() if mode is not None),
    ]


def lint_keep(lines: tuple[str, ...], path: Path) -> None:
    """Raise ValueError for a line that names nothing in the graph: atc would succeed, and silently
    compute it in float16.
    """
    nodes = onnx.load(path, load_external_data=False).graph.node
    names = {node.name for node in nodes}
    types = {name for node in nodes for name in IR_TYPES.get(node.op_type, (node.op_type,))}
    for line in lines:
        kind, separator, name = line.partition("::")
        if separator and kind == "OpType" and name in types:
            continue
        if not separator and line in names:
            continue
        if name in IR_TYPES and IR_TYPES[name][0] in types:
            hint = f"Ascend calls it {IR_TYPES[name][0]}"
        else:
            hint = (
                f"the graph has {', '.join(sorted(types))}"
                if separator
                else "no node has this name"
            )
        raise ValueError(
            f"keep.cfg: {line!r} names nothing in {Path(path).name} ({hint}); atc would "
            "silently ignore it"
        )


def read_input_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Input -> its fixed shape."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in graph.input
        if value.name not in constants
    }
    for name, shape in shapes.items():
        if 0 in shape:
            raise ValueError(
                f"input {name} of {Path(path).name} has no fixed shape {shape}: atc is given "
                "static shapes here"
            )
    return shapes


def convert_to_om(
    source: Path,
    target: Path,
    options: AtcOptions,
    *,
    cann: str | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> Record:
    """Make ``target`` from ``source``, or find that it is there already.

    One that is there counts if it was made from the same file by the same command for the same chip
    and CANN. A manifest (``<target>.json``) is written next to it, last. ``watch`` is given the
    seconds so far while ``atc`` works (``gma_lib.runs.progress.log_elapsed``).

    Returns
    -------
    dict
        The manifest: ``soc``, ``cann``, ``onnx_sha256``, ``om_sha256``, ``command``, ``options``,
        ``memory_bytes`` and ``simulated``.

    Raises
    ------
    AtcError
        When exit code, text and file do not all say that it worked. ``target`` is then not there.
    """
    source, target = Path(source), Path(target)
    lint_keep(options.keep_dtype, source)
    arguments = build_atc_command(source.name, target.stem, read_input_shapes(source), options)
    wanted = {
        "soc": to_soc_version(options.soc),
        "cann": cann,
        "onnx_sha256": hash_file(source),
        "command": arguments,
        "options": make_plain(asdict(options)),
    }
    known = read_manifest(target)
    if (
        known
        and {name: known.get(name) for name in wanted} == wanted
        and target.is_file()
        and known["om_sha256"] == hash_file(target)
    ):
        return known | {"reused": True}
    for stale in (_find_manifest(target), target):
        stale.unlink(missing_ok=True)
    text, memory = _compile(source, target, arguments, options, environment, watch)
    manifest = wanted | {
        "om_sha256": hash_file(target),
        "memory_bytes": memory,
        "simulated": is_simulated(target),
        "warnings": _warnings(text),
    }
    write_manifest(target, manifest)
    return manifest | {"reused": False}


def _compile(
    source: Path,
    target: Path,
    arguments: list[str],
    options: AtcOptions,
    environment: Mapping[str, str] | None,
    watch: Watch | None,
) -> tuple[str, int | None]:
    """Run atc and move its model to ``target``; return what atc printed, and the model's memory.

    It runs in a folder made for it: atc leaves kernel_meta/ and other files where it runs, and
    refuses paths with unusual letters.
    """
    with temporary_folder() as folder:
        shutil.copyfile(source, folder / source.name)
        if options.keep_dtype:
            (folder / "keep.cfg").write_text("".join(f"{line}\n" for line in options.keep_dtype))
        text = run_atc(arguments, folder, environment, watch)
        # some versions append the system and the processor to the name
        made = sorted(folder.glob(f"{target.stem}*.om"))
        if len(made) != 1 or made[0].stat().st_size == 0:
            raise AtcError(
                f"atc says that it succeeded and left {len(made)} model(s) that are not empty "
                "where one was expected"
            )
        memory = read_memory(made[0], environment)
        with write_atomically(target) as partial:
            shutil.copyfile(made[0], partial)
            os.chmod(partial, 0o644)  # atc writes 0600, which nobody else could load
    return text, memory


def write_manifest(om: Path, manifest: Record) -> Path:
    """Write the manifest of an ``.om``; return its path."""
    path = _find_manifest(om)
    write_text(path, json.dumps(manifest, indent=1) + "\n")
    return path


def _find_manifest(om: Path) -> Path:
    return Path(om).with_suffix(".om.json")


def read_manifest(om: Path) -> Record | None:
    """Read the manifest of an ``.om``; None if there is no readable one."""
    try:
        return load_record(_find_manifest(om), "the manifest of an .om")
    except BadFile:
        return None


def is_simulated(om: Path) -> bool:
    """Whether a stand-in for atc made the file."""
    with open(om, "rb") as file:
        return file.read(len(SIMULATED)) == SIMULATED


def run_atc(
    arguments: list[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> str:
    """Run in ``folder`` and return what was printed; raise ``AtcError`` unless exit code and text
    agree on success.
    """
    try:
        code, text = run_tool(
            arguments, timeout_s=TIMEOUT_S, folder=folder, environment=environment, watch=watch
        )
    except FileNotFoundError:
        raise AtcError(
            "atc is not installed, or CANN's set_env.sh was not sourced; docs/ascend.md says how, "
            "make ascend-dry-run writes the command for another machine"
        ) from None
    except TimeoutError as error:
        raise AtcError(f"atc {error}") from None
    if code == 0 and SUCCESS in text:
        return text
    raise AtcError(f"atc failed (exit code {code}): {explain_atc_error(text)}")


def _warnings(text: str) -> list[str]:
    return sorted(set(re.findall(r"\bW\d{5}\b[^\n]*", text)))[:20]


def read_memory(om: Path, environment: Mapping[str, str] | None = None) -> int | None:
    """Ask ``atc --mode=6`` how many bytes an ``.om`` needs; no card is needed for that. None where
    it does not say.
    """
    om = Path(om)
    try:
        _, text = run_tool(
            ["atc", "--mode=6", f"--om={om.name}"],
            timeout_s=600,
            folder=om.parent,
            environment=environment,
        )
    except OSError:  # no such program, or no answer in time
        text = ""
    return parse_memory(text)


def parse_memory(text: str) -> int | None:
    """Work space and weights, in bytes, of what ``atc --mode=6`` printed; None where it does not
    say the work space.
    """
    found = (
        re.search(rf"\b{name}\[([^\]]{{0,100}})\]", text) for name in ("memory_size", "weight_size")
    )
    work, weights = (re.sub(r"\D", "", match[1]) if match else "" for match in found)
    return int(work) + int(weights or 0) if work else None


def require_device_memory(
    manifest: Record, available_bytes: int | None, batch_size: int
) -> int | None:
    """The bytes that the model will take on the card, None if unknown; raise ``DoesNotFit`` where
    the card has less.
    """
    needed: int | None = manifest.get("memory_bytes")  # an older one has none
    if needed is not None and available_bytes is not None and needed > available_bytes:
        raise DoesNotFit(
            f"batch size {batch_size} needs {needed / 1e9:.1f} GB on the card (atc --mode=6); "
            f"{manifest['soc']} here has {available_bytes / 1e9:.1f} GB"
        )
    return needed
