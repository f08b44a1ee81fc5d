"""What tests of the Ascend path share: stand-ins that hold to the tools' contract, a small model
and its input.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from gma_lib.ascend import ais_bench, atc
from gma_lib.ascend.ais_bench import AisBench
from gma_lib.ascend.atc import AtcOptions

STANDINS = Path(__file__).parent / "standins"


SHAPE = (3, 128, 160)


BYTES = 4 * 3 * 128 * 160


@pytest.fixture
def standins(monkeypatch):
    """The stand-ins in front of the path; no variable of the outside reaches them."""
    return set_standins(monkeypatch)


def set_standins(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("STANDIN_", "GMA_", "ASCEND_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(
        "PATH", f"{STANDINS / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    monkeypatch.setenv("PYTHONPATH", str(STANDINS / "python"))
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)
    return monkeypatch


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A network that takes no time, with the guide's names: flow is the first two channels of the
    second frame less the first's.
    """
    folder = tmp_path_factory.mktemp("small")
    from onnx import TensorProto, helper, numpy_helper

    for batch in (1, 2, 4, 16):
        sides = [batch, *SHAPE]
        constants = [
            numpy_helper.from_array(np.array(value, np.int32), name)
            for name, value in (("start", [0]), ("end", [2]), ("axis", [1]))
        ]
        ones = [
            numpy_helper.from_array(np.full(3, value, np.float32), name)
            for name, value in (("scale", 1.0), ("bias", 0.0))
        ]
        nodes = [
            helper.make_node("Sub", ["image2", "image1"], ["d"], name="difference"),
            helper.make_node("InstanceNormalization", ["d", "scale", "bias"], ["n"], name="norm"),
            helper.make_node("Mul", ["n", "zero"], ["z"]),
            helper.make_node("Add", ["z", "d"], ["e"]),
            helper.make_node("Slice", ["e", "start", "end", "axis"], ["out1"]),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
                for name in ("image1", "image2")
            ],
            [helper.make_tensor_value_info("out1", TensorProto.FLOAT, [batch, 2, *SHAPE[1:]])],
            [*constants, *ones, numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
            folder / f"GMA_m_{batch}.onnx",
        )
    return folder


@pytest.fixture(scope="session")
def converted(models, tmp_path_factory):
    """The folder of an .om for two pairs, made once."""
    folder = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        set_standins(patch)
        atc.convert_to_om(models / "GMA_m_2.onnx", folder / "gma.om", AtcOptions("310P3"))
    return folder


@pytest.fixture
def om(standins, converted, tmp_path):
    """An .om for two pairs, which the test may change."""
    return Path(shutil.copytree(converted, tmp_path / "model")) / "gma.om"


@pytest.fixture
def folders(tmp_path):
    """Five pairs; pair i moves by (i, i + 1)."""
    made = [tmp_path / "in" / "image1", tmp_path / "in" / "image2"]
    for number in range(5):
        image1 = np.full(SHAPE, 7, np.float32)
        image2 = image1 + np.array([number, number + 1, 0], np.float32)[:, None, None]
        for folder, image in zip(made, (image1, image2), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            image.tofile(folder / f"{number:06d}.bin")
    return made


def infer(om, folders, output, python=sys.executable, device=0):
    return ais_bench.infer_folders(
        AisBench(python, device),
        om,
        folders,
        output,
        batch_size=2,
        output_shape=(2, 128, 160),
        input_bytes=BYTES,
    )


def list_ais_command(om, *arguments):
    """The stand-in's command line for a model."""
    return [sys.executable, "-m", "ais_bench", "--model", str(om), *arguments]


def raw(om, folders, output, *more):
    """The stand-in without the wrapper: what the contract says of the tool itself."""
    command = list_ais_command(om, "--input", ",".join(map(str, folders)))
    command += ["--output", str(output.parent)]
    return subprocess.run(
        [*command, "--output_dirname", output.name, *more], capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The network in each of its forms, one update."""
    from gma_lib import export
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.model import GMAConfig

    folder = tmp_path_factory.mktemp("exported")
    for lookup, opset in (("matmul", 13), ("gather", 12), ("grid_sample", 16)):
        model, checkpoint = load_model("seeded", GMAConfig(lookup=lookup, num_updates=1))
        export.export_whole(
            model,
            folder / f"{lookup}.onnx",
            height=128,
            width=160,
            batch_size=1,
            checkpoint=checkpoint,
            opset=opset,
        )
    return folder
