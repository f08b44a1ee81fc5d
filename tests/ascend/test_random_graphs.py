"""Whatever the graph: the rewrite computes the same at the ends of the ranges, or says why not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from small_graphs import DOUBLE, FLOAT, INT32, INT64, make

from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.verify import verify

NUMBERS = [0, 1, -1, 2, 5, -7, 300, 2**24 + 1, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1]
ENDS = [-3e9, -(2.0**31), -1.5, -0.0, 0.5, 1, 5, 255, 2.0**31, 3e9, 1e15]
OF_TWO = ("Add", "Sub", "Mul", "Max", "Min", "Where", "Div", "Mod", "Concat")
OF_ONE = (
    *("Neg", "Abs", "Sign", "Clip", "Transpose", "ReduceMax", "ReduceSum", "ArgMax", "TopK"),
    *(
        "Clamped",
        "Clamped",
        "Float",
        "Whole",
        "Int32",
        "Double",
        "Halved",
        "Shape",
        "Gathered",
        "Filled",
        "Sliced",
        "If",
    ),
)


class _Builder:
    """Adds nodes to a graph; every value has two axes, whole numbers and fractions apart."""

    def __init__(self):
        self.nodes, self.constants = [], []
        self.whole, self.floats = ["i"], ["x"]

    def constant(self, value, dtype=np.int64):
        self.constants.append((f"c{len(self.constants)}", np.asarray(value, dtype)))
        return self.constants[-1][0]

    def add(self, op, inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[-1]

    def two(self, op, a, b, number):
        if op == "Where":
            compare = ("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual")[number % 5]
            return self.add("Where", [self.add(compare, [a, b]), *((b, a), (a, b))[number % 2]])
        if op in ("Div", "Mod"):
            b = self.constant(number or 3)
        if op == "Concat":
            one = self.constant([1, 1])
            pieces = [self.add("ReduceMin", [a], axes=[0]), self.add("ReduceMax", [b], axes=[0])]
            flat = [self.add("Reshape", [piece, self.constant([-1])]) for piece in pieces]
            joined = self.add("Concat", flat, axis=0)
            return self.add("Reshape", [self.add("ReduceMax", [joined], axes=[0]), one])
        return self.add(op, [a, b])

    def one(self, op, a, number, low, high):
        axis, zero = number % 2, self.constant(0)
        make = {
            "Neg": lambda: self.add(op, [a]),
            "Abs": lambda: self.add(op, [a]),
            "Sign": lambda: self.add(op, [a]),
            "Transpose": lambda: self.add(op, [a], perm=[1, 0]),
            "ReduceMax": lambda: self.add(op, [a], axes=[axis], keepdims=1),
            "ReduceSum": lambda: self.add(op, [a, self.constant([axis])], keepdims=1),
            "ArgMax": lambda: self.add(op, [a], axis=axis, keepdims=1),
            "TopK": lambda: self.add(op, [a, self.constant([1])], 2 - axis, axis=1),
            "Clip": lambda: self.clip(a, low, high),
            "Clamped": lambda: self.clip(
                self.add("Add", [self.add("Cast", ["x"], to=INT64), self.constant(number)]),
                low,
                high,
            ),
            "Int32": lambda: self.add("Cast", [self.add("Cast", [a], to=INT32)], to=INT64),
            "Shape": lambda: self.add("Reshape", [self.add("Shape", [a]), self.constant([2, 1])]),
            "Gathered": lambda: self.add(
                "GatherElements", [a, self.add("Clip", [a, zero, zero])], axis=axis
            ),
            "Filled": lambda: self.add(
                "ConstantOfShape",
                [self.add("Shape", [a])],
                value=onnx.numpy_helper.from_array(np.array([low]), "value"),
            ),
            "Sliced": lambda: self.add(
                "Slice", [a, *(self.constant([end]) for end in (0, max(high, 1), 1))]
            ),
            "If": lambda: self.branch(a, low),
        }
        return make[op]()

    def clip(self, a, low, high):
        ends = [self.constant(end) for end in sorted((low, high))]
        return self.add("Clip", [a, *ends])

    def branch(self, a, low):
        first = self.add("ReduceMax", [a], keepdims=0)
        condition = self.add("Less", [first, self.constant(low)])
        bodies = [
            helper.make_graph(
                [
                    helper.make_node("Constant", [], ["n"], value_ints=[low]),
                    helper.make_node(op, [a, "n"], ["o"]),
                ],
                op,
                [],
                [helper.make_tensor_value_info("o", INT64, None)],
            )
            for op in ("Max", "Add")
        ]
        for body in bodies:
            body.output[0].type.tensor_type.shape.CopyFrom(
                helper.make_tensor_type_proto(INT64, ["p", "q"]).tensor_type.shape
            )
        return self.add("If", [condition], then_branch=bodies[0], else_branch=bodies[1])

    def fraction(self, op, a, number):
        """Whole numbers from fractions, and the other way."""
        if op == "Whole":
            source = self.floats[number % len(self.floats)]
            self.whole.append(self.add("Cast", [source], to=INT64))
        elif op == "Float":
            self.floats.append(self.add("Cast", [a], to=FLOAT))
        else:
            wide = self.add("Cast", [self.floats[number % len(self.floats)]], to=DOUBLE)
            if op == "Double":
                wide = self.add("Add", [wide, self.constant(0.1 * number, np.float64)])
            limit = self.constant(float(number) / (3 if op == "Double" else 2), np.float64)
            wide = self.add("Max", [wide, limit])
            self.floats.append(self.add("Cast", [wide], to=FLOAT))


@st.composite
def models(draw, longest=14):
    builder = _Builder()
    number = st.sampled_from(NUMBERS) | st.integers(-50, 50)
    for _ in range(draw(st.integers(2, longest))):
        op = draw(st.sampled_from(OF_TWO + OF_ONE))
        a = draw(st.sampled_from(builder.whole))
        small = draw(st.integers(0, 9))
        if op in OF_TWO:
            b = draw(st.sampled_from(builder.whole) | number)
            b = b if isinstance(b, str) else builder.constant(b)
            builder.whole.append(builder.two(op, a, b, small))
        elif op in ("Float", "Whole", "Double", "Halved"):
            builder.fraction(op, a, small)
        else:
            builder.whole.append(builder.one(op, a, small, draw(number), draw(number)))
    outputs = [("x", FLOAT), ("i", INT64)]
    outputs += [(name, INT64) for name in builder.whole[-2:]]
    outputs += [(name, FLOAT) for name in builder.floats[-2:]]
    nodes = [*builder.nodes]
    declared = []
    for number, (name, kind) in enumerate(dict.fromkeys(outputs)):
        nodes.append(helper.make_node("Identity", [name], [f"y{number}"]))
        declared.append((f"y{number}", kind, ["p" + str(number), "q" + str(number)]))
    open_axis = draw(st.sampled_from([2, "n"]))
    inputs = [("x", FLOAT, [open_axis, 3]), ("i", INT64, [2, 3])]
    return make(nodes, inputs, declared, builder.constants, opset=13)


def _run(model, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def compare(model, feeds=None):
    """The rewritten graph at the ends; its report, or None where the original computes nothing."""
    rng = np.random.default_rng(1)
    feeds = feeds or [
        {
            "x": rng.choice(ENDS, [2, 3]).astype(np.float32),
            "i": rng.choice(NUMBERS, [2, 3]),
        }
        for _ in range(4)
    ]
    try:
        onnx.checker.check_model(model, full_check=True)
        wanted = [_run(model, feed) for feed in feeds]
    except Exception:
        return None
    after, report = narrow_model(model)
    if report.changed:
        verify(model, after, feeds=feeds)
    for feed, expected in zip(feeds, wanted, strict=True):
        for one, other in zip(expected, _run(after, feed), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert report.wide_after <= report.wide_before
    assert report.wide_after < report.wide_before or not report.casts_added
    return report


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models())
def test_random_graphs(model):
    compare(model)
