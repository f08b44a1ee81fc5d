"""Whether a rewritten graph is the same computation as before."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, helper, numpy_helper

from gma_lib.ascend.graphs import collect_names, walk_graphs
from gma_lib.runs.leftovers import temporary_folder

Feeds = dict[str, np.ndarray]
TOLERANCE = 1e-4  # of the largest number in an output
OPEN_SIZES = (2, 3, 1)  # what open axes become, one feed after the other


class RewriteError(RuntimeError):
    """The rewritten graph is not what it has to be; nothing was written."""


@contextlib.contextmanager
def in_a_sentence(what: str) -> Iterator[None]:
    """Turn whatever onnx, ONNX Runtime and protobuf raise into ``RewriteError`` of one line."""
    try:
        yield
    except RewriteError:
        raise
    except Exception as error:  # they have a class for each cause
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RewriteError(f"{what}: {lines[0] if lines else type(error).__name__}") from error


def verify(
    before: ModelProto,
    after: ModelProto,
    *,
    feeds: Feeds | Sequence[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    largest_batch: int | None = None,
    folder: Path | None = None,
) -> list[str]:
    """Compare two graphs: validity, inputs and outputs, then types, shapes and numbers of what they
    compute, on several feeds and with the condition of every If forced to both sides.

    Parameters
    ----------
    feeds
        Inputs to compare with, one or several, each of which has to fit; made here when None.
    sizes
        What open axes become, by their names.
    largest_batch
        As for ``rewrite_file``.
    folder
        Where the external data of the graphs lies, if they have any.

    Returns
    -------
    list of str
        The branches that no comparison reached.

    Raises
    ------
    RewriteError
        When anything differs.
    """
    with in_a_sentence("the rewritten graph is not valid ONNX"), _place(folder) as path:
        onnx.save(after, path)
        onnx.checker.check_model(str(path), full_check=True)
    for label in ("input", "output"):
        one, other = (
            [(value.name, value.type) for value in getattr(model.graph, label)]
            for model in (after, before)
        )
        if one != other:
            raise RewriteError(f"the rewritten graph has other {label}s than the original")
    if largest_batch is not None:
        before, after = (_with_batch_at_most(model, largest_batch) for model in (before, after))
    given = make_feeds(before, sizes or {}) if feeds is None else feeds
    given = [given] if isinstance(given, dict) else given
    problems = _compare(before, after, given, folder)
    if len(problems) == len(given) or (problems and feeds is not None):
        raise RewriteError(problems[0])
    unseen = []
    for sides in _list_branches(before.graph, {}):
        forced = [_force(model, sides) for model in (before, after)]
        if len(_compare(forced[0], forced[1], given, folder)) == len(given):
            unseen.append(" in ".join(f"{side} of {name}" for name, side in sides.items()))
    return unseen


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """A file for a graph, beside its external data where it has any."""
    with temporary_folder() as own:
        path = (folder or own) / "compared.onnx"
        yield path
        path.unlink(missing_ok=True)


def _compare(
    before: ModelProto, after: ModelProto, feeds: Sequence[Feeds], folder: Path | None
) -> list[str]:
    """Raise where the rewritten graph computes something else; for each feed with which the
    original computes nothing, why.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4

    def load(model: ModelProto) -> onnxruntime.InferenceSession:
        with _place(folder) as path:
            onnx.save(model, path)
            return onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )

    try:
        with in_a_sentence("ONNX Runtime does not load the original graph"):
            original = load(before)
    except RewriteError as error:
        return [str(error)] * len(feeds)
    with in_a_sentence(
        "ONNX Runtime does not load the rewritten graph (name the operator in leave=)"
    ):
        rewritten = load(after)
    problems = []
    for number, feed in enumerate(feeds, 1):
        try:
            with in_a_sentence("the original graph computes nothing on these inputs"):
                expected = original.run(None, feed)
        except RewriteError as error:
            problems.append(str(error))
            continue
        with in_a_sentence("the rewritten graph does not run"):
            found = rewritten.run(None, feed)
        for value, wanted, got in zip(before.graph.output, expected, found, strict=True):
            if not _is_same(wanted, got):
                raise RewriteError(
                    f"output {value.name} of the rewritten graph has other values than before "
                    f"(feed {number} of {len(feeds)})"
                )
    return problems


def _is_same(wanted: object, got: object) -> bool:
    """Whether two results are alike in type, shape and, by the scale of the first, numbers."""
    if isinstance(wanted, list) and isinstance(got, list):  # a sequence
        return len(wanted) == len(got) and all(map(_is_same, wanted, got))
    if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray):
        return type(wanted) is type(got) and wanted == got
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return False
    if wanted.dtype.kind != "f":
        return np.array_equal(wanted, got)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return False
    largest = float(np.abs(wanted[finite]).max(initial=0))
    with np.errstate(invalid="ignore"):
        return bool((np.abs(wanted[finite] - got[finite]) <= TOLERANCE * largest).all())


def _list_branches(graph: GraphProto, taken: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield what every If, from the outermost to one within, has to choose for each branch to run:
    first output -> attribute that holds the branch.
    """
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                sides = dict(taken)
                if node.op_type == "If":
                    sides[node.output[0]] = attribute.name
                    yield sides
                yield from _list_branches(attribute.g, sides)


def _force(model: ModelProto, sides: dict[str, str]) -> ModelProto:
    """Let every If that is named take the side that is named."""
    result = copy.deepcopy(model)
    names = collect_names(result.graph)
    for side in ("then_branch", "else_branch"):
        constant = next(
            name for name in (f"{side}_{n}" for n in range(len(names) + 1)) if name not in names
        )
        condition = np.array(side == "then_branch")
        result.graph.initializer.append(numpy_helper.from_array(condition, constant))
        for node in (node for graph in walk_graphs(result.graph) for node in graph.node):
            if node.op_type == "If" and sides.get(node.output[0]) == side:
                node.input[0] = constant
    return result


def _with_batch_at_most(model: ModelProto, largest: int) -> ModelProto:
    result = copy.deepcopy(model)
    for value in [*result.graph.input, *result.graph.output]:
        batch = value.type.tensor_type.shape.dim[0]
        batch.dim_value = min(batch.dim_value, largest)
    del result.graph.value_info[:]
    return result


def make_feeds(model: ModelProto, sizes: dict[str, int]) -> list[Feeds]:
    """Three reproducible sets of inputs: those of photos (0 to 255, and 0 and 1 for whole numbers),
    the ends of what the types hold and int64 exceeds int32 by, and small ones of both signs.

    Open axes get the ``sizes`` of their names, else another size in each set.
    """
    rng = np.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds: list[Feeds] = [{}, {}, {}]
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
        if dtype is None or not tensor.HasField("shape") or dtype.kind not in "iufb":
            raise RewriteError(
                f"input {value.name} is no tensor of known shape and type: hand over feeds"
            )
        for number, feed in enumerate(feeds):
            shape = [
                dim.dim_value
                if dim.HasField("dim_value")
                else sizes.get(dim.dim_param, OPEN_SIZES[number])
                for dim in tensor.shape.dim
            ]
            feed[value.name] = _draw(rng, shape, dtype, number)
    return feeds


def _draw(rng: np.random.Generator, shape: list[int], dtype: np.dtype, number: int) -> np.ndarray:
    if dtype.kind == "f":
        ends = np.array([-3e9, -1, -0.5, 0, 0.5, 1, 255, 3e9])
        few = ends if dtype.itemsize > 2 else ends[1:-1]
        drawn = (rng.random(shape) * 255, rng.choice(few, shape), rng.normal(0, 10, shape))[number]
    elif dtype.kind == "b":
        drawn = (rng.integers(0, 2, shape), np.ones(shape), np.zeros(shape))[number]
    else:
        limits = np.iinfo(dtype)
        ends = np.array([limits.min, 0, 1, limits.max], dtype)
        drawn = (rng.integers(0, 2, shape), rng.choice(ends, shape), rng.integers(0, 10, shape))[
            number
        ]
    return drawn.astype(dtype)
