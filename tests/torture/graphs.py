"""Does the 64-bit rewrite ever change what a graph computes? ``make torture PART=graphs``

240 random graphs of up to 30 steps and 80 graphs exported from PyTorch modules that are put
together at random. Each rewrite has to give the same results at the ends of the ranges, or to be
refused with a reason. About ten minutes.

    python tests/torture/graphs.py [--seed N] [--out FILE]
"""

import io
import sys
import warnings
from collections import Counter
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional as F

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "ascend")]
from test_random_graphs import ENDS, compare, models  # noqa: E402

from gma_lib.ascend.verify import RewriteError  # noqa: E402
from gma_lib.runs import write_json  # noqa: E402

FOUND = Counter()
# (fractions (2, 3, 8, 8), whole numbers (2, 8)) -> the same; none needs a bound that it lacks
STEPS = {
    "argmax": lambda x, i: (x, x.argmax(dim=1)[:, 0] + i),
    "topk": lambda x, i: (x, x.flatten(1).topk(8, dim=1).indices - i),
    "index": lambda x, i: (x.index_select(3, i[0].clamp(0, 7)), i),
    "gather": lambda x, i: (x.gather(3, i.clamp(0, 7)[:, None, None].expand(-1, 3, 8, -1)), i),
    "embedding": lambda x, i: (
        x + F.embedding(i.remainder(16), torch.eye(16, 8))[:, None],
        i,
    ),
    "one-hot": lambda x, i: (x * F.one_hot(i.clamp(0, 7), 8)[:, None], i),
    "arange": lambda x, i: (x + torch.arange(x.shape[3]), i + torch.arange(x.shape[3])),
    "mesh": lambda x, i: (x * torch.meshgrid(torch.arange(8), i[1], indexing="ij")[1], i),
    "cast": lambda x, i: (x, x[:, 0, 0].long().clamp(-100, 2**20) + i),
    "cast without bounds": lambda x, i: (x, x[:, 1, 2].long() + i),
    "round": lambda x, i: (x + x.round().clamp(-9, 9).long(), i),
    "divide": lambda x, i: (x, torch.div(i, 3, rounding_mode="floor")),
    "remainder": lambda x, i: (x, i.remainder(7)),
    "scale": lambda x, i: (x, i * 1_000_003),
    "beyond 32 bits": lambda x, i: (x, i.clamp(-5, 5) + 2**33),
    "sum": lambda x, i: (x, i + i.sum(dim=1, keepdim=True)),
    "cumulated": lambda x, i: (x, i.cumsum(dim=1)),
    "where": lambda x, i: (x.masked_fill(i[:, None, None] > 4, 0.5), i.where(i > 2, -i)),
    "reshape": lambda x, i: (x.reshape(x.shape[0], -1).reshape(x.shape), i.flip(1)),
    "pad": lambda x, i: (F.pad(x, [1, 1, 2, 0])[..., 2 : 2 + x.shape[2], 1:-1], i),
    "resize": lambda x, i: (F.interpolate(x, scale_factor=2)[..., ::2, ::2], i),
    "scatter": lambda x, i: (
        x.scatter(3, i.clamp(0, 7)[:, None, None].expand(-1, 3, 8, -1), 1.5),
        i,
    ),
    "double": lambda x, i: ((x.double() + 0.1).float(), i),
    "sort": lambda x, i: (x.sort(dim=3).values, x.sort(dim=3).indices[:, 0, 0] + i),
    "roll": lambda x, i: (x.roll(3, 2), i.roll(1, 1)),
}


class Chain(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names

    def forward(self, x, i):
        for name in self.names:
            x, i = STEPS[name](x, i)
        return x, i


def export(names, opset):
    """The chain as a graph; None where the exporter has no form of it."""
    given = torch.rand(2, 3, 8, 8), torch.arange(16).reshape(2, 8)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Chain(names), given, file, dynamo=False, opset_version=opset,
                input_names=["x", "i"], do_constant_folding=bool(len(names) % 2),
            )  # fmt: skip
    except Exception as error:
        FOUND[f"not exported: {type(error).__name__}"] += 1
        return None
    return onnx.load_from_string(file.getvalue())


def count(report):
    if report is None:
        FOUND["computes nothing"] += 1
    else:
        FOUND["changed" if report.changed else "left as it is"] += 1
        FOUND["with reasons"] += bool(report.refused)


@settings(max_examples=240, deadline=None, suppress_health_check=list(HealthCheck))
@given(models(longest=30))
def rewrite_random_graphs(model):
    count(compare(model))


@click.command()
@click.option("--seed", type=int, help="Of PyTorch's graphs; another one each time if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(seed, out):
    """Rewrite random graphs, and PyTorch's; stop at the first that computes something else."""
    rewrite_random_graphs()
    found = {"random": dict(FOUND)}
    print("random graphs:", found["random"], flush=True)
    FOUND.clear()
    rng = np.random.default_rng(seed)
    done = 0
    while done < 80:
        names = list(rng.choice(list(STEPS), rng.integers(1, 7)))
        model = export(names, int(rng.integers(12, 18)))
        if model is None:
            continue
        done += 1
        whole = [0, 1, -1, 7, 8, 300, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62]
        feeds = [
            {
                "x": rng.choice(ENDS, [2, 3, 8, 8]).astype(np.float32),
                "i": rng.choice(whole, [2, 8]),
            }
            for _ in range(4)
        ]
        try:
            count(compare(model, feeds))
        except RewriteError as error:
            if "does not load" not in str(error):  # it names the operator to leave
                raise RuntimeError(f"{names}: {error}") from error
            FOUND["refused whole"] += 1
    print("PyTorch's graphs:", dict(FOUND))
    if out:
        write_json(out, found | {"pytorch": dict(FOUND)})


if __name__ == "__main__":
    main()
