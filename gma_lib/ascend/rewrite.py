"""From an ONNX file to one with 32-bit numbers, wherever they are proven to fit: read, narrow
(``narrowing``), verify, write.

Accelerators have no int64 and no float64; Ascend's older compilers refuse graphs that use them. A
value is narrowed only where its range is known: constants, known dimensions, what derives from
them, and a float that every path clamps after its Cast. float64 is narrowed where no bit is lost.
What an operator allows is read from its schema at the model's own opset. Inputs and outputs of the
graph keep their types; everything else stays as it is, with a reason.
"""

import hashlib
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, external_data_helper

from gma_lib.ascend.graphs import NARROW, find_wide_values, walk_graphs
from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.ranges import FEW
from gma_lib.ascend.verify import Feeds, RewriteError, in_a_sentence, verify
from gma_lib.ascend.writing import RewriteReport
from gma_lib.runs.files import put_in_place, write_atomically
from gma_lib.runs.leftovers import temporary_folder
from gma_lib.runs.processes import tie_child

VENDOR_TIMEOUT_S = 3600


def rewrite_file(
    source: Path,
    target: Path,
    *,
    feeds: Feeds | Sequence[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    leave: frozenset[str] = frozenset(),
    largest_batch: int | None = None,
) -> RewriteReport:
    """Rewrite a file and verify the result before it gets its name.

    Parameters
    ----------
    feeds, sizes
        Inputs to compare both graphs with, or what open axes of inputs made here become.
    leave
        Operators to leave as they are, for runtimes that lack a kernel that the schema promises.
    largest_batch
        Run both graphs with this batch size at most, because that of a card may not fit in this
        machine's memory. Only for graphs whose first dimension is the batch and is mentioned by
        inputs and outputs alone, as those of ``gma_lib.export.trace``.

    Raises
    ------
    RewriteError
        When the source is no valid graph, or the result is invalid, does not load, or computes
        something else. ``target`` is then not written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target.parent) as folder:
        before = _read_model(source, target.name, folder)
        with in_a_sentence(f"{source} cannot be rewritten"):
            after, report = narrow_model(before, leave=leave)
        if report.changed:
            report.not_compared = verify(
                before, after, feeds=feeds, sizes=sizes, largest_batch=largest_batch, folder=folder
            )
        for data in folder.iterdir():
            put_in_place(data, target.parent / data.name)
        with write_atomically(target) as partial:
            onnx.save(after if report.changed else before, partial)
    return report


def _read_model(source: Path, name: str, folder: Path) -> ModelProto:
    """Read a graph, check it, and copy its external data, renamed after the target, to a folder.

    Of external data, only numbers of 64 bits and small tensors are loaded: 2 GB of weights stay in
    their file.
    """
    with in_a_sentence(f"{source} cannot be read as a valid ONNX graph"):
        model = onnx.load(source, load_external_data=False)
        graphs = list(walk_graphs(model.graph))
        for tensor in (tensor for graph in graphs for tensor in graph.initializer):
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            if tensor.data_type in NARROW or math.prod(tensor.dims) <= FEW:
                external_data_helper.load_external_data_for_tensor(tensor, str(source.parent))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
                continue
            place = next(entry for entry in tensor.external_data if entry.key == "location")
            digest = hashlib.sha256(place.value.encode()).hexdigest()[:8]
            renamed = folder / f"{name}.{digest}.data"
            if not renamed.exists():
                shutil.copyfile(source.parent / place.value, renamed)
            place.value = renamed.name
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        for value, known in zip(model.graph.output, inferred, strict=True):
            if not value.type.tensor_type.HasField("shape"):  # ONNX Runtime does without
                value.CopyFrom(known)
        checked = folder / "checked.onnx"
        onnx.save(model, checked)
        onnx.checker.check_model(str(checked), full_check=True)
        checked.unlink()
    return model


def rewrite_where_needed(source: Path, target: Path) -> str:
    """As ``rewrite_file`` where a node computes 64-bit numbers, else a copy; what was done, in a
    sentence.
    """
    if list_wide_activations(source):
        # a batch of a card's size would need a card's memory to be compared in
        return rewrite_file(source, target, largest_batch=2).sentence()
    with write_atomically(target) as partial:
        shutil.copyfile(source, partial)
    return "no rewrite needed: the graph computes no int64 and no float64 value."


def rewrite_with_vendor_tool(
    source: Path,
    target: Path,
    *,
    python: str = "python3",
    feeds: Feeds | Sequence[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
) -> list[str]:
    """Ask ``auto_optimizer`` for its KnowledgeTypeCast (``-k 4``, as in the guide), and believe
    none of it before it is verified; return the branches that no comparison reached.

    The tool answers with exit code 0 when it did nothing, when it failed inside, and when what it
    wrote is not valid.

    Raises
    ------
    RewriteError
        When it is not installed, wrote nothing, or its result is not the same computation.
        ``target`` is then not written.
    """
    with temporary_folder() as folder:
        made = folder / "made.onnx"
        files = [str(Path(source).absolute()), str(made)]
        command = [python, "-m", "auto_optimizer", "optimize", *files, "-k", "4"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=folder,
                timeout=VENDOR_TIMEOUT_S,
                **tie_child(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RewriteError(
                f"auto_optimizer did not run ({type(error).__name__}: {error})"
            ) from error
        if not made.is_file():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise RewriteError(
                f"auto_optimizer wrote nothing (exit code {done.returncode}): "
                f"{lines[-1] if lines else 'and printed nothing'}"
            )
        unseen = verify(onnx.load(source), onnx.load(made), feeds=feeds, sizes=sizes)
        with write_atomically(target) as partial:
            shutil.copyfile(made, partial)
    return unseen


def list_wide_activations(path: Path) -> list[str]:
    """List the values that nodes compute in 64 bits, which accelerators cannot hold, or in an
    unknown type; constants of 64 bits are no reason to rewrite.
    """
    with in_a_sentence(f"{path} cannot be read as an ONNX graph"):
        model = onnx.load(path, load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(model).graph
    wide = find_wide_values(graph)
    parts = walk_graphs(graph)
    return [name for part in parts for node in part.node for name in node.output if name in wide]
