"""ONNX to ONNX: 64-bit numbers become 32-bit ones, wherever the operators allow it.

Accelerators have no int64 and no float64; Ascend's older compilers refuse graphs that use them.
What an operator allows is read from its schema at the model's own opset. Inputs and outputs of the
graph keep their types, a Cast is added only at a border and shared, and a constant that 32 bits
cannot hold is never clipped: what uses it stays as it is, with a reason.
"""

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx

from gma_lib.ascend.graphs import find_wide_values, walk_graphs
from gma_lib.ascend.narrowing import RewriteReport, narrow_model
from gma_lib.ascend.verify import RewriteError, verify
from gma_lib.runs.files import write_atomically
from gma_lib.runs.processes import tie_child
from gma_lib.runs.progress import show_messages

log = logging.getLogger(__name__)


def rewrite_file(
    source: Path,
    target: Path,
    *,
    feeds: dict[str, np.ndarray] | None = None,
    leave: frozenset[str] = frozenset(),
    largest_batch: int | None = None,
) -> RewriteReport:
    """Rewrite a file and verify the result before it gets its name.

    Parameters
    ----------
    feeds
        Inputs to compare both graphs with; random ones when None, which needs fixed input shapes.
    leave
        Operators to leave as they are, for runtimes that lack a kernel that the schema promises.
    largest_batch
        Run both graphs with this batch size at most, because that of a card may not fit in this
        machine's memory. Only for graphs whose first dimension is the batch and is mentioned by
        inputs and outputs alone, as those of ``gma_lib.export.trace``.

    Raises
    ------
    RewriteError
        When the result is invalid, does not load, or computes something else. ``target`` is then
        not written.
    """
    before = onnx.load(source)
    after, report = narrow_model(before, leave=leave)
    if report.changed:
        verify(before, after, feeds=feeds, largest_batch=largest_batch)
    with write_atomically(target) as partial:
        onnx.save(after, partial)
    return report


def rewrite_where_needed(source: Path, target: Path, *, largest_batch: int | None = None) -> str:
    """As ``rewrite_file`` where a node computes 64-bit numbers, else a copy; what was done, in a
    sentence.
    """
    if computes_wide(source):
        return rewrite_file(source, target, largest_batch=largest_batch).to_sentence()
    with write_atomically(target) as partial:
        shutil.copyfile(source, partial)
    return "no rewrite needed: the graph computes no int64 and no float64 value."


def rewrite_with_vendor_tool(
    source: Path,
    target: Path,
    *,
    python: str = "python3",
    feeds: dict[str, np.ndarray] | None = None,
    timeout_s: float = 3600,
) -> None:
    """Ask ``auto_optimizer`` for its KnowledgeTypeCast (``-k 4``, as in the guide), and believe
    none of it before it is verified.

    The tool answers with exit code 0 when it did nothing, when it failed inside, and when what it
    wrote is not valid.

    Raises
    ------
    RewriteError
        When it is not installed, wrote nothing, or its result is not the same computation.
        ``target`` is then not written.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        command = [
            python,
            "-m",
            "auto_optimizer",
            "optimize",
            str(Path(source).absolute()),
            str(made),
            "-k",
            "4",
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=folder,
                timeout=timeout_s,
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
        verify(onnx.load(source), onnx.load(made), feeds=feeds)
        with write_atomically(target) as partial:
            shutil.copyfile(made, partial)


def computes_wide(path: Path) -> bool:
    """Whether any node of a file computes a 64-bit value; constants of 64 bits are no reason to
    rewrite.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    computed = {name for part in walk_graphs(graph) for node in part.node for name in node.output}
    return bool(computed & set(find_wide_values(graph)))


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--leave", multiple=True, help="An operator to leave as it is.")
@click.option(
    "--vendor-python",
    help="Ask auto_optimizer instead, which this interpreter has; its result is verified.",
)
def main(source: Path, target: Path, leave: tuple[str, ...], vendor_python: str | None) -> None:
    """Write SOURCE to TARGET with 32-bit numbers in place of 64-bit ones, and say what changed."""
    show_messages()
    try:
        if vendor_python:
            rewrite_with_vendor_tool(source, target, python=vendor_python)
            left = len(find_wide_values(onnx.shape_inference.infer_shapes(onnx.load(target)).graph))
            log.info(
                f"auto_optimizer's result computes the same; it leaves {left} values of 64 bits."
            )
        else:
            report = rewrite_file(source, target, leave=frozenset(leave))
            log.info(report.to_sentence())
            for node, reason in report.refused.items():
                log.info(f"left as it is: {node}: {reason}")
    except (RewriteError, ValueError) as error:
        raise SystemExit(f"rewrite: {error}") from error


if __name__ == "__main__":
    main()
