"""The Ascend path against stand-ins that hold to the tools' contract; tests name the section of
ascend.md that they are about.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from gma_lib import doctor
from gma_lib.ascend import ais_bench, atc, chip, dry_run, errors, keep, operators, tool, toolkit
from gma_lib.ascend.ais_bench import AisBench, AisBenchError
from gma_lib.ascend.atc import AtcError, AtcOptions
from gma_lib.backends import ascend as backend
from gma_lib.convert import to_ascend
from gma_lib.pipeline.parameters import WrongParameters, resolve_parameters
from gma_lib.pipeline.stamps import compute_key
from gma_lib.runs import run as runs
from gma_lib.runs.run import DoesNotFit

STANDINS = Path(__file__).parents[1] / "standins"
SHAPE = (3, 128, 160)
BYTES = 4 * 3 * 128 * 160


@pytest.fixture
def standins(monkeypatch):
    """The stand-ins in front of the path; no variable of the outside reaches them."""
    for name in [name for name in os.environ if name.startswith(("STANDIN_", "GMA_", "ASCEND_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(
        "PATH", f"{STANDINS / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    monkeypatch.setenv("PYTHONPATH", str(STANDINS / "python"))
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)
    return monkeypatch


@pytest.fixture(scope="module")
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
            nodes, "small", [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("image1", "image2")],
            [helper.make_tensor_value_info("out1", TensorProto.FLOAT, [batch, 2, *SHAPE[1:]])],
            [*constants, *ones, numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
            folder / f"GMA_m_{batch}.onnx",
        )
    return folder


@pytest.fixture
def om(standins, models, tmp_path):
    """An .om for two pairs."""
    atc.convert_to_om(models / "GMA_m_2.onnx", tmp_path / "model" / "gma.om", AtcOptions("310P3"))
    return tmp_path / "model" / "gma.om"


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


def infer(om, folders, output, python=sys.executable, **more):
    return ais_bench.infer_folders(
        AisBench(python, **more),
        om,
        folders,
        output,
        batch_size=2,
        output_shape=(2, 128, 160),
        input_bytes=BYTES,
    )


def raw(om, folders, output, *more):
    """The stand-in without the wrapper: what the contract says of the tool itself."""
    command = [
        sys.executable,
        "-m",
        "ais_bench",
        "--model",
        str(om),
        "--input",
        ",".join(map(str, folders)),
        "--output",
        str(output.parent),
    ]
    return subprocess.run(
        [*command, "--output_dirname", output.name, *more], capture_output=True, text=True
    )


# --- chip: ascend.md 3 ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["310P3", "Ascend310P3", "Ascend 310P3", "AscendAscend310P3", " 310P3 "]
)
def test_the_prefix_stands_exactly_once(word):
    """ascend.md 3 'Practice', 7.8."""
    assert chip.to_soc_version(word) == "Ascend310P3"


NAMES = [
    "310", "310P1", "310P3", "310P5", "310P7", "310P3vir01", "310P3vir02", "310P3vir04", "310P3vir08", "310B1", "310B2", "310B3",
    "310B4", "910A", "910ProA", "910B", "910ProB", "910PremiumA", "910B1", "910B2", "910B3", "910B4", "910B2C", "910B4-1", "910_9391",
    "910_9392", "910_9381", "910_9382", "910_9372", "910_9362", "950PR", "950DT",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_chip_s_name(name):
    """ascend.md 3 'Names': as atc wants it, in the table, and in the mapping with its space."""
    assert chip.to_soc_version(name) == f"Ascend{name}"
    row = f"| 0       {name}     | Critical        | 0.0          47                15   / 15             |"
    assert [
        found.soc
        for found in chip.parse_table(f"{row}\n| 0       0            | NA   | 0     1 / 8192    |")
    ] == [f"Ascend{name}"]
    mapping = f"        0      0      3      Ascend {name}\n        0      1      -      Mcu"
    assert [(found.soc, found.device) for found in chip.parse_mapping(mapping)] == [
        (f"Ascend{name}", 3)
    ]


@pytest.mark.parametrize("word", ["", "Ascend", "A100", "31", "python3"])
def test_what_is_no_chip_is_refused(word):
    with pytest.raises(ValueError, match="names no Ascend chip"):
        chip.to_soc_version(word)


def test_the_runtime_is_asked_first(standins):
    """ascend.md 3 'Best when CANN is installed', 8.5."""
    standins.setenv("STANDIN_SOC", "310P1")
    found = chip.find_chips(python=sys.executable)
    assert [(one.soc, one.device, one.source) for one in found] == [
        ("Ascend310P1", 0, "acl.get_soc_name"),
        ("Ascend310P1", 1, "acl.get_soc_name"),
    ]


def test_then_the_mapping_with_logic_ids(standins):
    """ascend.md 3 'Rules': NPU ids 32768 and 33024 are no device ids; the Mcu is no chip."""
    standins.setenv("STANDIN_NO_ACL", "1")
    found = chip.find_chips(python=sys.executable)
    assert [(one.soc, one.device, one.memory_bytes) for one in found] == [
        ("Ascend310P3", 0, 21534 * 2**20),
        ("Ascend310P3", 1, 21534 * 2**20),
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("310P", [("Ascend310P3", 21534 * 2**20), ("Ascend310P3", 21534 * 2**20)]),
        ("310B", [("Ascend310B4", 15609 * 2**20)]),
        ("21", [("Ascend310", 8192 * 2**20)]),
        ("A2", [("Ascend910B3", 65536 * 2**20)]),
        ("A3", [("Ascend910_9391", 65536 * 2**20), ("Ascend910_9391", 65536 * 2**20)]),
    ],
)
def test_then_the_table_in_every_shape(standins, kind, expected):
    """ascend.md 3 'Variants': rows of the process table are no cards, although one here looks like
    it; Bus-Id NA, Health Alarm.
    """
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NO_MAPPING", "1")
    standins.setenv("STANDIN_NPU_SMI", kind)
    found = chip.find_chips(python=sys.executable)
    assert [(one.soc, one.memory_bytes) for one in found] == expected


def test_the_a3_is_told_by_its_board(standins):
    """ascend.md 3 'Rules': ChipName_NPUName."""
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NPU_SMI", "A3")
    assert [(one.soc, one.device) for one in chip.find_chips(python=sys.executable)] == [
        ("Ascend910_9391", 0),
        ("Ascend910_9391", 1),
    ]


@pytest.mark.parametrize("named", [32768, -1])
def test_a_device_is_one_logic_id(named):
    """ascend.md 3 'Rules': the NPU id of the table is no device; 1.1: a list would start several
    processes.
    """
    with pytest.raises(ValueError, match="logic ID of one chip"):
        chip.Card(device=named)
    with pytest.raises(WrongParameters, match="device is int"):
        resolve_parameters("tiny", 1, {"device": "0,1"})


def test_the_user_s_word_goes_before_all(standins):
    assert chip.find_chips(word="910B3", python=sys.executable)[0].soc == "Ascend910B3"


@pytest.mark.parametrize(
    ("kind", "message"),
    [("busy", "-8020"), ("nodriver", "driver does not answer"), ("nolib", "libdrvdsmi")],
)
def test_no_chip_says_why_and_what_to_do(standins, kind, message):
    """ascend.md 3 'Errors instead of table'."""
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NPU_SMI", kind)
    with pytest.raises(chip.NoChipFound, match=rf"{message}.*SOC=310P3"):
        chip.find_chips(python=sys.executable)


def test_no_driver_at_all(monkeypatch):
    """ascend.md 3 'Errors instead of table': command not found."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(chip.NoChipFound, match="not installed"):
        chip.find_chips(python=sys.executable)


# --- CANN: ascend.md 2.5 --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cann", "ascend-toolkit", "nnrt", "nnae"])
def test_cann_in_its_old_and_new_places(tmp_path, place):
    """ascend.md 2.5: the paths of set_env.sh."""
    (tmp_path / place / "latest").mkdir(parents=True)
    (tmp_path / place / "set_env.sh").write_text("export FROM_CANN=1\n")
    (tmp_path / place / "latest" / "version.cfg").write_text(
        "# version: 1.0\ntoolkit_running_version=[8.0.RC1:8.0.RC1]\n"
    )
    found = toolkit.find_toolkit(tmp_path, {})
    assert found.script == tmp_path / place / "set_env.sh"
    assert found.version == "8.0.RC1"
    assert toolkit.load_tool_environment(found, {"PATH": "/usr/bin:/bin"})["FROM_CANN"] == "1"


def test_no_cann_and_no_version(tmp_path):
    assert toolkit.find_toolkit(tmp_path, {}) is None
    assert toolkit.read_version(tmp_path) is None


def test_ais_bench_lives_in_another_python(standins):
    """ascend.md 1.8: there is no wheel for every Python."""
    assert toolkit.find_ais_python() == sys.executable
    with pytest.raises(FileNotFoundError, match="no-such-python"):
        toolkit.find_ais_python("no-such-python")
    standins.setenv("PYTHONPATH", "")
    with pytest.raises(FileNotFoundError, match="AIS_PYTHON="):
        toolkit.find_ais_python()


def test_the_doctor_finds_them(standins, tmp_path):
    """ascend.md 2.5, 3: CANN with its opsets, the interpreter, every chip with its logic ID and
    memory.
    """
    (tmp_path / "set_env.sh").write_text("")
    (tmp_path / "version.cfg").write_text("toolkit_running_version=[7.0.0:7.0.0]\n")
    standins.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    found = {(finding.what, finding.detail): finding.word for finding in doctor.check_machine()}
    assert found["CANN", f"{tmp_path / 'set_env.sh'}, version 7.0.0, opset 9 to 18"] == "OK"
    assert found["ais_bench", sys.executable] == "OK"
    chips = [detail for what, detail in found if what == "Ascend chip"]
    assert chips == [
        f"Ascend310P3, device {device}, 22.6 GB (acl.get_soc_name)" for device in (0, 1)
    ]


# --- operators: ascend.md 2.5, 2.6 ----------------------------------------------------------------


def _graph(tmp_path, operator, opset):
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], []),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.mark.parametrize(
    ("operator", "opset", "cann", "words"),
    [
        ("Gather", 13, "6.0.1", ("fine", "unknown")),
        ("Gather", 13, "8.0.RC1", ("fine", "fine")),
        ("Gather", 14, "6.0.1", ("refused", "unknown")),
        ("Gather", 18, "7.0.0", ("fine", "unknown")),
        ("Gather", 9, "8.0", ("refused", "fine")),
        ("Gather", 19, "8.0", ("refused", "refused")),
        ("GridSample", 16, "8.0", ("fine", "fine")),
        ("GridSample", 13, "8.0", ("fine", "refused")),
        ("GridSample", 11, "6.0.1", ("fine", "refused")),
        ("Loop", 13, "8.5", ("fine", "refused")),
        ("Conv", 13, "8.0", ("fine", "unknown")),
        ("Conv", 13, None, ("unknown", "unknown")),
        ("Conv", 13, "12.0", ("unknown", "unknown")),
    ],
)
def test_what_a_version_can_read(tmp_path, operator, opset, cann, words):
    """ascend.md 2.5, 2.6."""
    verdicts = operators.check_operators(_graph(tmp_path, operator, opset), cann)
    assert tuple(verdict.word for verdict in verdicts) == words
    assert ("[hyp]" in verdicts[1].why) == ((operator, words[1]) == ("GridSample", "fine"))
    if "refused" in words:
        with pytest.raises(ValueError, match="cannot be converted"):
            operators.refuse_impossible(verdicts)
    else:
        operators.refuse_impossible(verdicts)


def test_a_loop_within_a_body_is_found(tmp_path):
    """ascend.md 2.6: Loop and Scan, never."""
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Loop", ["n", "c"], ["o"])], "inner", [], []
    )
    node = onnx.helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], []),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
    )
    onnx.save(model, tmp_path / "g.onnx")
    words = {
        verdict.what: verdict.word
        for verdict in operators.check_operators(tmp_path / "g.onnx", "8.5")
    }
    assert words == {"opset 13": "fine", "If": "fine", "Loop": "refused"}


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize(
    ("lookup", "cann", "opset", "refused"),
    [
        ("matmul", "6.0.1", "fine", set()),
        ("matmul", "7.0.0", "fine", set()),
        ("matmul", "8.0.RC1", "fine", set()),
        ("gather", "6.0.1", "fine", set()),
        ("gather", "7.0.0", "fine", set()),
        ("gather", "8.0.RC1", "fine", set()),
        ("grid_sample", "6.0.1", "refused", {"GridSample"}),
        ("grid_sample", "7.0.0", "fine", set()),
        ("grid_sample", "8.0.RC1", "fine", set()),
    ],
)
def test_the_graph_that_goes_to_atc(exported, lookup, cann, opset, refused):
    """ascend.md 2.5, 2.6: nothing of our graphs is refused but GridSample where it was absent; what
    nobody wrote down is unknown.
    """
    first, *rest = operators.check_operators(exported / f"{lookup}.onnx", cann)
    assert first.word == opset
    words = {verdict.what: verdict.word for verdict in rest}
    assert {name for name, word in words.items() if word == "refused"} == refused
    assert words["Conv"] == "unknown"  # the page does not name it
    assert words["Softmax"] == ("fine" if cann.startswith("8") else "unknown")
    assert set(words) == {
        node.op_type for node in onnx.load(exported / f"{lookup}.onnx").graph.node
    }


# --- atc: ascend.md 2.1 to 2.4 --------------------------------------------------------------------


def test_the_guide_s_command_argument_by_argument():
    """ascend.md 2.1."""
    shapes = {"image1": (1, 3, 440, 1024), "image2": (1, 3, 440, 1024)}
    assert atc.build_atc_command("GMA_m_1.onnx", "GMA_bs1", shapes, AtcOptions("Ascend310P3")) == [
        "atc",
        "--framework=5",
        "--input_shape=image1:1,3,440,1024;image2:1,3,440,1024",
        "--output=GMA_bs1",
        "--soc_version=Ascend310P3",
        "--keep_dtype=keep.cfg",
        "--model=GMA_m_1.onnx",
    ]


def test_every_other_flag_on_request():
    """ascend.md 2.3."""
    options = AtcOptions(
        "310P3",
        input_format="NCHW",
        precision_mode_v2="mixed_float16",
        output_type="FP32",
        log="error",
    )
    assert atc.build_atc_command("m.onnx", "o", {}, options)[-4:] == [
        "--input_format=NCHW",
        "--precision_mode_v2=mixed_float16",
        "--output_type=FP32",
        "--log=error",
    ]
    with pytest.raises(ValueError, match="exclude each other"):
        AtcOptions("310P3", precision_mode="force_fp16", precision_mode_v2="fp16")
    with pytest.raises(ValueError, match="no effect"):
        AtcOptions("310P3", precision_mode="must_keep_origin_dtype")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("OpType::InstanceNormalization", "Ascend calls it InstanceNorm"),
        ("OpType::InstanceNrom", "the graph has"),
        ("no_such_node", "no node has this name"),
    ],
)
def test_keep_cfg_is_linted(models, line, message):
    """ascend.md 2.3 --keep_dtype: atc ignores a typo and says success."""
    atc.lint_keep(("OpType::InstanceNorm", "difference"), models / "GMA_m_1.onnx")
    with pytest.raises(ValueError, match=message):
        atc.lint_keep((line,), models / "GMA_m_1.onnx")


def test_what_stays_float32(exported, standins, tmp_path):
    """ascend.md 2.7, 7.42: by the guide's line, or the coordinates as well by name; and the report
    says it in a few words.
    """
    source = exported / "matmul.onnx"
    assert to_ascend.choose_options("310P3", "float16", source).keep_dtype == (
        "OpType::InstanceNorm",
    )
    assert to_ascend.choose_options("310P3", "float32", source).keep_dtype == ()
    options = to_ascend.choose_options("310P3", "float16", source, keep="coordinates")
    products = {node.name for node in onnx.load(source).graph.node if node.op_type == "MatMul"}
    assert options.keep_dtype[0] == "OpType::InstanceNorm"
    assert len(options.keep_dtype) > 50
    assert not products & set(options.keep_dtype)
    manifest = atc.convert_to_om(
        source, tmp_path / "gma.om", options
    )  # every line names a node of the graph
    assert (
        keep.describe_kept(manifest["options"]["keep_dtype"])
        == f"InstanceNorm and {len(options.keep_dtype) - 1} nodes by name"
    )
    with pytest.raises(ValueError, match="KEEP is one of guide, coordinates, not 'everything'"):
        to_ascend.choose_options("310P3", "float16", source, keep="everything")


def test_another_chip_named_means_converting_again(tmp_path):
    """03 is up to date for one chip and one keep list only."""
    run = runs.Run(tmp_path, "tiny", "ascend", "float16", 1, "ascend-float16")
    asked = [{}, {}, {"soc": "310P1"}, {"soc": "310P3"}, {"keep": "coordinates"}]
    keys = [compute_key("03_convert", run, settings) for settings in asked]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_a_model_with_its_manifest(om):
    """ascend.md 2.2: 0600 and kernel_meta/ stay behind; 2.3: --mode=6."""
    manifest = atc.read_manifest(om)
    assert om.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in om.parent.iterdir()) == ["gma.om", "gma.om.json"]
    assert manifest["soc"] == "Ascend310P3"
    assert manifest["simulated"] is True
    assert manifest["memory"]["memory_bytes"] == 2 * 1400 * 2**20
    assert manifest["memory"]["soc"] == "Ascend310P3"
    assert any("W11001" in warning for warning in manifest["warnings"])


def test_a_cached_model_only_when_all_of_it_matches(om, models):
    """ascend.md 8.7: soc, CANN, ONNX and flags."""
    source, options = models / "GMA_m_2.onnx", AtcOptions("310P3")
    assert atc.convert_to_om(source, om, options)["reused"]
    assert not atc.convert_to_om(source, om, options, cann="7.0.0")["reused"]
    assert not atc.convert_to_om(source, om, replace(options, output_type="FP32"), cann="7.0.0")[
        "reused"
    ]
    assert not atc.convert_to_om(models / "GMA_m_4.onnx", om, options)["reused"]
    om.write_bytes(b"damaged")
    assert not atc.convert_to_om(models / "GMA_m_4.onnx", om, options)["reused"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("atc-silent", r"exit code 0.*ATC start working"),
        ("atc-no-file", r"left 0 model"),
        ("atc-empty-file", r"left 1 model.*not empty"),
        ("atc-hangs", r"did not end within"),
        ("atc-loader", r"libascend_hal.so.*devlib"),
        (
            "atc-code:EZ3003: No supported Ops kernel and engine are found for [/a], optype [GridSample].",
            "ops .kernels. package",
        ),
        (
            "atc-code:E19010: No parser is registered for Op [x, optype [ai.onnx::23::Div]].",
            "export with an opset",
        ),
        (
            "atc-code:E16002: No ONNX parser is registered for optype ai.onnx::20::X",
            "export with an opset",
        ),
        (
            "atc-code:[PID: 1] 2026-01-01 Failed_Import(EC0010): Failed to import Python module [decorator].",
            "decorator",
        ),
        ("atc-code:E13004: File cannot be read", "rights"),
        ("atc-code:E10019: something else", r"not known here \(E10019: something else"),
        ("atc-code:something new", "something new"),
    ],
)
def test_every_way_of_failing_is_a_sentence_and_leaves_nothing(
    standins, models, tmp_path, fault, message
):
    """ascend.md 2.2, 2.4: success is exit code, text and file; the old and the new form of a code."""
    standins.setenv("STANDIN_FAULT", fault)
    with pytest.raises(AtcError, match=message) as raised:
        atc.convert_to_om(
            models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3", timeout_s=5)
        )
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


CODES = [
    "E10001", "E10003", "E10007", "E10016", "E10054", "E10410", "E10501", "E11010", "E13000", "E13025", "E16001", "E16002", "E19010",
    "EZ9010", "EZ3002", "EZ3003", "E19999", "E40000", "EC0010", "EZ9999", "EL0004", "EE1001", "507011",
]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        "{}: Value is wrong",
        "[PID: 1234] 2026-01-01-00:00:00.000.000 Invalid_Argument({}): Value is wrong",
    ],
)
@pytest.mark.parametrize("code", CODES)
def test_every_code_is_a_meaning_and_a_remedy(code, form):
    """ascend.md 2.4, both print formats."""
    text = f"ATC run failed, Please check the detail log, Try 'atc --help' for more information\n{form.format(code)}\n  TraceBack: x.cc"
    meaning, remedy = errors.ATC_ERRORS[code if code in errors.ATC_ERRORS else code[:3]]
    assert errors.explain_atc_error(text) == f"{meaning} ({form.format(code)}); {remedy}"


@pytest.mark.parametrize("code", ["E10019", "E16004", "E16005"])
def test_a_code_without_a_meaning_is_quoted(code):
    """ascend.md 2.4 names these and does not say what they mean; so their line is shown, not the
    last one.
    """
    assert f"({code}: Value is wrong)" in errors.explain_atc_error(
        f"ATC run failed\n{code}: Value is wrong\n  TraceBack: x.cc"
    )


def test_help_is_no_success(standins):
    """ascend.md 2.2: --help ends with 0 and without the line."""
    done = subprocess.run(["atc", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert atc.SUCCESS not in done.stdout


def test_a_failed_run_removes_the_older_model(om, models, standins):
    """ascend.md 2.2: what failed leaves nothing that looks like a result."""
    standins.setenv("STANDIN_FAULT", "atc-code:EZ9999: Inner Error")
    with pytest.raises(AtcError, match="internal error"):
        atc.convert_to_om(models / "GMA_m_4.onnx", om, AtcOptions("310P3"))
    assert list(om.parent.iterdir()) == []


def test_the_name_with_system_and_processor(standins, models, tmp_path):
    """ascend.md 2.2: <name>_linux_x86_64.om."""
    standins.setenv("STANDIN_FAULT", "atc-suffix")
    atc.convert_to_om(models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3"))
    assert (tmp_path / "gma.om").is_file()


def test_atc_is_not_installed(models, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AtcError, match="ascend-dry-run"):
        atc.convert_to_om(models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3"))


def test_the_doubled_prefix_is_what_atc_would_refuse(standins, tmp_path):
    """ascend.md 7.8: the stand-in refuses AscendAscend310P3, with exit code 255 on stdout."""
    done = subprocess.run(
        [
            "atc",
            "--framework=5",
            "--model=a",
            "--output=b",
            "--input_shape=x:1",
            "--soc_version=AscendAscend310P3",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 255
    assert "ATC run failed" in done.stdout
    assert "E10001" in errors.explain_atc_error(done.stdout)


def test_memory_is_predicted_before_it_is_suffered(standins, models, tmp_path):
    """ascend.md 2.3 --mode=6."""
    manifest = atc.convert_to_om(models / "GMA_m_16.onnx", tmp_path / "gma.om", AtcOptions("310P3"))
    with pytest.raises(DoesNotFit, match=r"batch size 16 needs 23\.5 GB on the card"):
        atc.require_device_memory(manifest, 21534 * 2**20, 16)
    assert atc.require_device_memory(manifest, None, 16) > 0
    assert (
        atc.require_device_memory(
            manifest | {"memory": vars(atc.parse_memory("nothing of use"))}, 1, 16
        )
        is None
    )


# --- the stand-in for ais_bench is held to its contract: ascend.md 1.2 to 1.6 ---------------------


def test_contract_names_are_cut_at_the_first_dot(om, folders, tmp_path):
    """ascend.md 1.2."""
    for folder in folders:
        (folder / "000000.bin").rename(folder / "a.b.bin")
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    assert (tmp_path / "out" / "bs2" / "a_0.bin").stat().st_size == 4 * 2 * 128 * 160
    with pytest.raises(ValueError, match="cuts names at the first dot"):
        infer(om, folders, tmp_path / "other" / "bs2")


def test_contract_the_summary_is_a_sibling_with_every_key(om, folders, tmp_path):
    """ascend.md 1.2."""
    raw(om, folders, tmp_path / "out" / "bs2")
    content = json.loads((tmp_path / "out" / "bs2_summary.json").read_text())
    assert {
        "filesinfo",
        "args",
        "NPU_compute_time",
        "H2D_latency",
        "D2H_latency",
        "throughput",
        "npu_compute_time_list",
        "pid",
    } <= set(content)
    assert set(content["NPU_compute_time"]) == {
        "min",
        "max",
        "mean",
        "median",
        "percentile(99%)",
        "count",
    }
    assert list(content["filesinfo"]) == ["0", "1", "2", "3", "4"]


def test_contract_the_last_batch_is_padded_and_cut(om, folders, tmp_path):
    """ascend.md 1.3.4: five inputs at batch size 2 are three runs and five outputs."""
    done = raw(om, folders, tmp_path / "out" / "bs2")
    assert "runcount:3" in done.stdout
    assert len(list((tmp_path / "out" / "bs2").iterdir())) == 5


def test_contract_pairs_are_formed_by_position(om, folders, tmp_path):
    """ascend.md 1.3.7: a missing first file shifts every pair, exit code 0; the wrapper never
    starts.
    """
    (folders[0] / "000000.bin").unlink()
    assert raw(om, folders, tmp_path / "out" / "bs2").returncode == 0
    shifted = np.fromfile(tmp_path / "out" / "bs2" / "000001_0.bin", np.float32)
    assert shifted[0] == 0  # the second frame of pair 0
    with pytest.raises(ValueError, match="disagree"):
        infer(om, folders, tmp_path / "other" / "bs2")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("sort", "first"), [("natural", "2"), ("plain", "10")])
def test_contract_both_sort_orders(om, tmp_path, standins, sort, first):
    """ascend.md 1.4: samples are numbered in the tool's order; outputs are mapped by name all the
    same.
    """
    standins.setenv("STANDIN_SORT", sort)
    folders = [tmp_path / "in" / "image1", tmp_path / "in" / "image2"]
    for folder, add in zip(folders, (0, 1), strict=True):
        folder.mkdir(parents=True)
        for number in (2, 10):
            np.full(SHAPE, add * number, np.float32).tofile(folder / f"{number}.bin")
    raw(om, folders, tmp_path / "out" / "bs2")
    content = json.loads((tmp_path / "out" / "bs2_summary.json").read_text())
    assert Path(content["filesinfo"]["0"]["infiles"][0]).stem == first
    files, _ = infer(om, folders, tmp_path / "other" / "bs2")
    assert {stem: np.fromfile(file, np.float32)[0] for stem, file in files.items()} == {
        "2": 2.0,
        "10": 10.0,
    }


def test_contract_exit_codes(om, folders, tmp_path):
    """ascend.md 1.1, 1.5: 2 for a flag (an empty --batchsize among them, 7.6), 1 for a model."""
    assert raw(om, folders, tmp_path / "out" / "bs2", "--batchsize", "").returncode == 2
    assert raw(om, folders, tmp_path / "out" / "bs2", "--outfmt", "bin").returncode == 2
    gone = raw(om.with_name("gone.om"), folders, tmp_path / "out" / "bs2")
    assert gone.returncode == 1
    assert "load model from file failed" in gone.stdout
    assert "[1][ACL: invalid parameter]" in gone.stderr


def test_contract_input_that_the_tool_refuses(om, folders, tmp_path):
    """ascend.md 1.5: a missing folder, an empty one, a file of another size: exit code 1 and a bare
    RuntimeError; 1.3.1 for the text.
    """
    empty = tmp_path / "empty"
    empty.mkdir()
    for inputs, said in (
        ([folders[0], tmp_path / "none"], "is not a real dir path"),
        ([empty, empty], "not find valid file"),
    ):
        done = raw(om, inputs, tmp_path / "out" / "bs2")
        assert done.returncode == 1
        assert said in done.stdout
    (folders[0] / "000000.bin").write_bytes(b"cut off")
    done = raw(om, folders, tmp_path / "out" / "bs2")
    assert done.returncode == 1
    assert "tensorsize: 491520 filesize: 7 not match" in done.stdout


def test_contract_a_profiled_run_always_ends_with_zero(om, folders, tmp_path):
    """ascend.md 1.5: exit(0) is hard coded; only the summary that is missing tells."""
    done = raw(om.with_name("gone.om"), folders, tmp_path / "out" / "bs2", "--profiler", "1")
    assert done.returncode == 0
    with pytest.raises(AisBenchError, match="without a summary"):
        ais_bench.find_summary(tmp_path / "out" / "bs2", newer_than=0)


def test_contract_a_worker_that_died_leaves_the_others_outputs(om, folders, tmp_path, standins):
    """ascend.md 1.5, 1.6: exit code 1, and files that look like a result."""
    standins.setenv("STANDIN_FAULT", "ais-worker-died")
    done = raw(om, folders, tmp_path / "out" / "bs2", "--device", "0,1")
    assert done.returncode == 1
    assert "subprocess run failed error_callback" in done.stdout
    with pytest.raises(AisBenchError, match="left 3 of 5 outputs; missing: 000003, 000004"):
        ais_bench.collect_outputs(
            tmp_path / "out" / "bs2", [f"{number:06d}" for number in range(5)], (2, 128, 160)
        )


def test_contract_the_cut_file_of_batch_size_one_is_found_late(standins, models, folders, tmp_path):
    """ascend.md 1.3.3: only the C++ part notices, with outputs of the files before it left behind;
    the wrapper never starts.
    """
    one = tmp_path / "one.om"
    atc.convert_to_om(models / "GMA_m_1.onnx", one, AtcOptions("310P3"))
    (folders[1] / "000002.bin").write_bytes(b"cut")
    done = raw(one, folders, tmp_path / "out" / "bs1")
    assert done.returncode == 1
    assert "needsize:245760 not match" in done.stdout
    assert len(list((tmp_path / "out" / "bs1").iterdir())) == 2
    with pytest.raises(ValueError, match=r"000002.bin has 3 bytes"):
        infer(one, folders, tmp_path / "other" / "bs1")


def test_contract_pure_inference_with_an_output_folder(om, tmp_path):
    """ascend.md 1.2: pure_infer_data_0.bin."""
    command = [
        sys.executable,
        "-m",
        "ais_bench",
        "--model",
        str(om),
        "--output",
        str(tmp_path),
        "--output_dirname",
        "pure",
        "--loop",
        "3",
    ]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert [path.name for path in (tmp_path / "pure").iterdir()] == ["pure_infer_data_0.bin"]
    assert (
        json.loads((tmp_path / "pure_summary.json").read_text())["NPU_compute_time"]["count"] == 3
    )


def test_contract_nothing_is_saved_without_an_output_folder(om, folders, tmp_path):
    """ascend.md 1.1 --output, --output_dirname."""
    command = [
        sys.executable,
        "-m",
        "ais_bench",
        "--model",
        str(om),
        "--input",
        ",".join(map(str, folders)),
    ]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "in"}
    assert (
        subprocess.run(
            [*command, "--output_dirname", "bs2"], capture_output=True, cwd=tmp_path
        ).returncode
        == 1
    )


# --- the wrapper: ascend.md 1.5 to 1.7, 8.1 -------------------------------------------------------


@pytest.mark.parametrize("generation", ["T", "N"])
def test_flow_of_every_pair_by_name(om, folders, tmp_path, standins, generation):
    """ascend.md 1.4: outputs are matched by name."""
    standins.setenv("STANDIN_GENERATION", generation)
    files, timing = infer(om, folders, tmp_path / "out" / "bs2")
    flows = {
        stem: np.fromfile(file, np.float32).reshape(2, 128, 160) for stem, file in files.items()
    }
    assert {stem: (flow[0, 0, 0], flow[1, 5, 5]) for stem, flow in flows.items()} == {
        f"{i:06d}": (i, i + 1) for i in range(5)
    }
    assert len(timing.compute_ms) == 3
    assert timing.simulated


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("ais-half", "507011"),
        ("ais-killed", "exit code -11"),
        ("ais-other-flags", "exit code 2.*required: --om-model"),
        ("ais-no-summary", "without a summary"),
        ("ais-success-nothing", "without a summary"),
        ("ais-one-missing", "left 4 of 5 outputs; missing: 000000"),
        ("ais-nan", "not finite"),
        ("ais-short", "bytes where float32"),
        ("ais-hangs", "did not end within"),
    ],
)
def test_every_way_of_failing_gives_no_result(om, folders, tmp_path, standins, fault, message):
    """ascend.md 1.5: success is exit code 0, a fresh summary, and every output there, whole and
    finite.
    """
    standins.setenv("STANDIN_FAULT", fault)
    with pytest.raises(AisBenchError, match=message) as raised:
        infer(om, folders, tmp_path / "out" / "bs2", timeout_s=15 if fault != "ais-hangs" else 6)
    assert len(str(raised.value).splitlines()) == 1


def test_a_stale_summary_is_no_summary(om, folders, tmp_path, standins):
    """ascend.md 1.2: one of an earlier run survives a crashed one."""
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "bs2_summary.json"
    old.write_text("{}")
    os.utime(old, (1, 1))
    standins.setenv("STANDIN_FAULT", "ais-success-nothing")
    with pytest.raises(AisBenchError, match="is of an earlier run"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(om, folders, tmp_path, standins):
    """ascend.md 1.6: the tool runs processes of its own; none is left behind."""
    standins.setenv("STANDIN_FAULT", "ais-hangs")
    standins.setenv("STANDIN_PIDS", str(tmp_path / "pids"))
    with pytest.raises(AisBenchError, match="did not end within 6 s"):
        infer(om, folders, tmp_path / "out" / "bs2", timeout_s=6)
    deadline = time.monotonic() + 10  # what was killed may still need a moment on a busy machine
    for process in (tmp_path / "pids").read_text().split():
        while not gone(process):
            assert time.monotonic() < deadline, f"process {process} goes on"
            time.sleep(0.05)


def gone(process: str) -> bool:
    """A dead child that nobody has waited for yet is a zombie."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_path_with_an_owner_in_it_is_not_the_cause(om, folders, tmp_path, standins):
    """The tool prints its paths; a user may be called so."""
    standins.setenv("STANDIN_FAULT", "ais-killed")
    folder = folders[0].rename(tmp_path / "an_owner")
    with pytest.raises(AisBenchError, match="exit code -11") as error:
        infer(om, (folder, *folders[1:]), tmp_path / "owner" / "bs2")
    assert "refuses the path" not in str(error.value)


def test_ctrl_c_ends_the_tool(tmp_path):
    """An interrupted notebook leaves no process behind that still holds the card."""

    def interrupted(moments):
        next(iter(moments))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool.run_tool(
            ["sh", "-c", f"echo $$ > {tmp_path / 'pid'}; exec sleep 100"],
            timeout_s=50,
            watch=interrupted,
        )
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_both_channels_of_a_tool_in_one_text():
    assert tool.run_tool(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout_s=5) == (3, "a\nb\n")
    much = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done"  # more than a pipe holds
    assert len(tool.run_tool(["sh", "-c", much], timeout_s=20)[1]) == 220_000


def test_the_cause_that_only_the_log_has(om, folders, tmp_path, standins):
    """ascend.md 1.5: all failures to load share one text; the cause can stand in
    ~/ascend/log/debug/plog alone.
    """
    standins.setenv("HOME", str(tmp_path))
    standins.setenv("STANDIN_FAULT", "ais-cause-in-plog")
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(AisBenchError, match=r"made for another chip.*model socVersion=Ascend310P3"):
        infer(om, folders, tmp_path / "out" / "bs2")
    for log in tmp_path.rglob("plog-*.log"):
        os.utime(log, (1, 1))  # of an earlier run: it says nothing about this one
    standins.setenv("STANDIN_SOC", "310P3")
    standins.setenv("STANDIN_MEMORY_MB", "1000")
    with pytest.raises(DoesNotFit, match="EL0004"):
        infer(om, folders, tmp_path / "out" / "bs3")
    (tmp_path / "ascend").rename(tmp_path / "away")
    standins.setenv("HOME", "/nowhere")
    om.write_bytes(b"damaged")
    with pytest.raises(AisBenchError, match="the model was not loaded; it is damaged"):
        infer(om, folders, tmp_path / "out" / "bs4")


def test_progress_counts_outputs_as_they_appear(om, folders, tmp_path):
    seen = []

    def track(items, *, label, unit, total):
        for number in items:
            seen.append((label, unit, number, total))
            yield number

    bench = AisBench(sys.executable)
    ais_bench.infer_folders(
        bench,
        om,
        folders,
        tmp_path / "out" / "bs2",
        batch_size=2,
        output_shape=(2, 128, 160),
        input_bytes=BYTES,
        track=track,
    )
    assert seen == [("ais_bench", "pair", number, 5) for number in range(5)]


def test_no_room_for_outputs(om, standins, monkeypatch):
    """ascend.md 7.30: said before anything is launched."""
    with backend.AscendBackend(om, backend.AscendOptions()) as network:
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000)
        )
        monkeypatch.setattr(
            ais_bench, "run_tool", lambda *arguments, **settings: pytest.fail("was launched")
        )
        with pytest.raises(OSError, match=r"needs 0\.00 GB"):
            network.predict(*np.zeros((2, 2, *SHAPE), np.float32))


@pytest.mark.parametrize("generation", ["T", "N"])
def test_a_backend_where_the_group_may_write(om, standins, generation):
    """ascend.md 1.7: with umask 002 the newer tool would refuse every file; 7.40: names and shapes."""
    standins.setenv("STANDIN_GENERATION", generation)
    before = os.umask(0o002)
    try:
        with backend.AscendBackend(om, backend.AscendOptions()) as network:
            image1 = np.zeros((2, *SHAPE), np.float32)
            flow = network.predict(image1, image1 + np.array([3, 4, 5], np.float32)[:, None, None])
    finally:
        os.umask(before)
    assert flow.shape == (2, 2, 128, 160)
    assert np.unique(flow[:, 0]) == 3
    assert np.unique(flow[:, 1]) == 4
    assert network.simulated


def test_models_that_the_backend_refuses(om, standins):
    """ascend.md 2.3 --soc_version: not portable; 8.7: an .om without its own manifest, or of
    another precision, is none.
    """
    options = backend.AscendOptions()
    with pytest.raises(ValueError, match="computes in float16, not float32: run 03_convert again"):
        backend.AscendBackend(om, replace(options, precision="float32"))
    with pytest.raises(ValueError, match="computes in float16 or float32, not bfloat16"):
        backend.AscendBackend(om, replace(options, precision="bfloat16"))
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(
        ValueError,
        match=r"made for Ascend310P3, this machine has Ascend310P1: run 03_convert again",
    ):
        backend.AscendBackend(om, options)
    standins.setenv("STANDIN_SOC", "310P3")
    om.write_bytes(om.read_bytes() + b"more")
    with pytest.raises(ValueError, match="do not belong together"):
        backend.AscendBackend(om, options)
    om.with_suffix(".om.json").write_text("{")
    with pytest.raises(ValueError, match="do not belong together"):
        backend.AscendBackend(om, options)
    om.unlink()
    with pytest.raises(FileNotFoundError, match="run 03_convert first"):
        backend.AscendBackend(om, options)


def test_rights_that_the_newer_tool_refuses(om, folders, tmp_path, standins):
    """ascend.md 1.7: its text becomes a sentence; the older tool does not mind."""
    folders[0].chmod(0o775)
    infer(om, folders, tmp_path / "out" / "bs2")
    standins.setenv("STANDIN_GENERATION", "N")
    with pytest.raises(
        AisBenchError, match=r"refuses the path.*permission should not be over 0o755"
    ):
        infer(om, folders, tmp_path / "out" / "bs3")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_an_owner_that_the_newer_tool_refuses(om, folders, tmp_path, standins):
    """ascend.md 1.7: owner must match; the older tool does not mind."""
    os.chown(folders[0], 12345, -1)
    infer(om, folders, tmp_path / "out" / "bs2")
    standins.setenv("STANDIN_GENERATION", "N")
    with pytest.raises(
        AisBenchError, match=r"refuses the path: it wants real files of this user.*is not the owner"
    ):
        infer(om, folders, tmp_path / "out" / "bs3")


def test_a_folder_with_old_results_is_refused(om, folders, tmp_path):
    """ascend.md 1.2: the tool never cleans its folder; 7.47."""
    (tmp_path / "out" / "bs2").mkdir(parents=True)
    (tmp_path / "out" / "bs2" / "000000_0.bin").write_bytes(b"old")
    with pytest.raises(ValueError, match="not empty"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_input_folders_are_compared_before_anything_starts(om, folders, tmp_path):
    """ascend.md 1.3.7, 1.7, 8.1."""
    output = tmp_path / "out" / "bs2"
    with pytest.raises(ValueError, match="no such folder"):
        infer(om, [folders[0], tmp_path / "none"], output)
    (folders[1] / "000003.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"000003.bin has 3 bytes"):
        infer(om, folders, output)
    (folders[1] / "000003.bin").unlink()
    with pytest.raises(ValueError, match=r"disagree.*000003.bin"):
        infer(om, folders, output)
    (folders[1] / "000003.bin").symlink_to(folders[0] / "000003.bin")
    with pytest.raises(ValueError, match="is a link"):
        infer(om, folders, output)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"holds no \.bin"):
        infer(om, [empty, empty], output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["with space", "a=b", "ä"])
def test_paths_that_the_newer_tool_rejects(om, folders, tmp_path, name):
    """ascend.md 1.7."""
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(ValueError, match="is a link"):
        infer(om, [tmp_path / "link", folders[1]], tmp_path / "out" / "bs2")
    with pytest.raises(ValueError, match=r"ending in \.om"):
        infer(om.with_suffix(".bin"), folders, tmp_path / "out" / "bs2")
    with pytest.raises(ValueError, match="letters, digits"):
        infer(om, folders, tmp_path / name / "bs2")


def test_another_chip_s_model(om, folders, tmp_path, standins):
    """ascend.md 1.5: the text is that of every failed load; only EE1001 tells."""
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(AisBenchError, match=r"made for another chip.*EE1001"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_memory_that_runs_out_is_a_status(om, folders, tmp_path, standins):
    """ascend.md 1.5: when loading (EL0004) and when running (aclrtMalloc), which leaves outputs and
    no summary.
    """
    standins.setenv("STANDIN_FAULT", "ais-oom-run")
    with pytest.raises(DoesNotFit, match=r"batch size 2: out of memory on the card .*aclrtMalloc"):
        infer(om, folders, tmp_path / "out" / "bs1")
    assert len(list((tmp_path / "out" / "bs1").iterdir())) == 1
    standins.setenv("STANDIN_FAULT", "")
    standins.setenv("STANDIN_MEMORY_MB", "1000")
    with pytest.raises(DoesNotFit, match=r"batch size 2: out of memory on the card .*EL0004"):
        infer(om, folders, tmp_path / "out" / "bs2")


def test_a_wrong_device_and_a_python_without_the_tool(om, folders, tmp_path, standins):
    """ascend.md 1.5, 1.8."""
    with pytest.raises(AisBenchError, match=r"npu-smi info -m.*acl open device 9"):
        infer(om, folders, tmp_path / "out" / "bs2", device=9)
    with pytest.raises(AisBenchError, match="no such interpreter"):
        infer(om, folders, tmp_path / "out" / "bs3", python="/no/python")
    standins.setenv("PYTHONPATH", "")
    with pytest.raises(AisBenchError, match="No module named ais_bench: install"):
        infer(om, folders, tmp_path / "out" / "bs4")


def _outputs(folder, values):
    folder.mkdir(parents=True)
    for stem, value in values.items():
        np.full((2, 4, 4), value, np.float32).tofile(folder / f"{stem}_0.bin")


def test_outputs_of_every_layout(tmp_path, om, folders, standins):
    """ascend.md 1.6: deviceN/ of the older tool splits the files, deviceN_M/ of the newer repeats
    them.
    """
    assert raw(om, folders, tmp_path / "t" / "bs2", "--device", "0,1").returncode == 0
    assert (
        len(
            ais_bench.collect_outputs(
                tmp_path / "t" / "bs2", [f"{i:06d}" for i in range(5)], (2, 128, 160)
            )
        )
        == 5
    )
    assert (
        ais_bench.find_summary(tmp_path / "t" / "bs2", newer_than=0).name == "device0_summary.json"
    )
    standins.setenv("STANDIN_GENERATION", "N")
    assert raw(om, folders, tmp_path / "n" / "bs2", "--device", "0,1").returncode == 0
    assert len(list((tmp_path / "n").rglob("*_0.bin"))) == 10
    assert (
        len(
            ais_bench.collect_outputs(
                tmp_path / "n" / "bs2", [f"{i:06d}" for i in range(5)], (2, 128, 160)
            )
        )
        == 5
    )
    _outputs(tmp_path / "d" / "device0_0", {"a": 1})
    _outputs(tmp_path / "d" / "device1_1", {"a": 2})
    with pytest.raises(AisBenchError, match="2 devices, which disagree"):
        ais_bench.collect_outputs(tmp_path / "d", ["a"], (2, 4, 4))


def test_outputs_that_nobody_asked_for(tmp_path):
    """ascend.md 7.47."""
    _outputs(tmp_path / "out", {"a": 1, "b": 2})
    with pytest.raises(AisBenchError, match="not asked for: b"):
        ais_bench.collect_outputs(tmp_path / "out", ["a"], (2, 4, 4))


@pytest.mark.parametrize("generation", ["T", "N"])
def test_the_loop_as_the_guide_measures(om, standins, generation):
    """ascend.md 1.2: throughput is 1000 x batch size / mean time, without transfers; 1.9: times of
    both generations.
    """
    standins.setenv("STANDIN_GENERATION", generation)
    standins.setenv("STANDIN_TIMES_MS", "1305,5181,11799,0")
    standins.setenv("STANDIN_MB_PER_SAMPLE", "1")
    four = om.with_name("four.om")
    atc.convert_to_om(Path(onnx_of(om, 4)), four, AtcOptions("310P3"))
    timing = ais_bench.time_on_zeros(AisBench(sys.executable), four, batch_size=4, loop=100)
    assert len(timing.compute_ms) == 100
    assert timing.throughput == pytest.approx(0.772, abs=1e-3)
    assert (timing.h2d_ms, timing.d2h_ms) == (8.0, 4.0)  # two inputs of 4 ms each, one output


@pytest.mark.parametrize(("loop", "batches"), [(1, 3), (100, 1), (100, 3)])
def test_copies_are_those_of_one_call(tmp_path, loop, batches):
    """ascend.md 1.2: the latencies are of single copies, one per input and batch, however often the
    batch is repeated.
    """
    copies = {
        "H2D_latency": {"mean": 5.0, "count": 2 * batches},
        "D2H_latency": {"mean": 3.0, "count": batches},
    }
    content = {"npu_compute_time_list": [10.0] * loop * batches, "throughput": 100.0, **copies}
    (tmp_path / "s.json").write_text(json.dumps(content))
    timing = ais_bench.read_summary(tmp_path / "s.json", loop=loop)
    assert (timing.h2d_ms, timing.d2h_ms) == (10.0, 3.0)


def onnx_of(om, batch):
    """The small network of another batch size, taken from the one inside a stand-in's .om."""
    model = onnx.load_from_string(om.read_bytes().split(b"\n", 2)[2])
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, om.with_name(f"m{batch}.onnx"))
    return om.with_name(f"m{batch}.onnx")


def test_times_and_throughput_that_contradict_each_other(om, monkeypatch):
    """ascend.md 1.2: a wrong unit or batch size would silently scale the throughput."""
    content = ais_bench.Timing([10.0] * 100, 1.0, 1.0, 5.0, True)
    monkeypatch.setattr(ais_bench, "_run", lambda *arguments: None)
    monkeypatch.setattr(ais_bench, "find_summary", lambda *arguments, **more: None)
    monkeypatch.setattr(ais_bench, "read_summary", lambda path, loop: content)
    with pytest.raises(AisBenchError, match="mean of 10 ms, and its throughput says 400 ms"):
        ais_bench.time_on_zeros(AisBench(sys.executable), om, batch_size=2)


def test_a_damaged_summary(tmp_path):
    """ascend.md 8.2."""
    (tmp_path / "s.json").write_text('{"throughput": 1')
    with pytest.raises(AisBenchError, match="is no summary"):
        ais_bench.read_summary(tmp_path / "s.json")


# --- without any tool -----------------------------------------------------------------------------


def test_dry_run_writes_commands_and_files(models, tmp_path, monkeypatch):
    """ascend.md 7.54; 2.4, E10054: what a shell would cut is quoted."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gma.onnx").write_bytes((models / "GMA_m_4.onnx").read_bytes())
    commands = dry_run.write_commands(tmp_path / "model", tmp_path / "ascend", AtcOptions("310P3"))
    assert [Path(command[0]).name for command in commands] == [
        "atc",
        "atc",
        "python3",
        "python3",
        "python3",
    ]
    script = (tmp_path / "ascend" / "commands_bs4.sh").read_text()
    assert (
        "'--input_shape=image1:4,3,128,160;image2:4,3,128,160'" in script
    )  # the ';' is quoted: 7.6, E10054
    assert (tmp_path / "ascend" / "keep.cfg").read_text() == "OpType::InstanceNorm\n"
    assert "# no rewrite needed" in script
    assert "# CANN 6.0: refused: nothing; unknown: Add" in script
    assert (
        subprocess.run(["bash", "-n", str(tmp_path / "ascend" / "commands_bs4.sh")]).returncode == 0
    )


def test_dry_run_too_early(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_export first"):
        dry_run.write_commands(tmp_path, tmp_path / "ascend", AtcOptions("310P3"))


def test_stand_ins_import_nothing_of_the_library():
    for file in STANDINS.rglob("*"):
        if file.is_file() and file.suffix in ("", ".py"):
            assert "gma_lib" not in file.read_text()
