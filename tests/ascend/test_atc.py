"""``atc``, by a stand-in that holds to its contract."""

import subprocess
from dataclasses import replace

import onnx
import pytest
from onnx import helper
from small_graphs import FLOAT, make

from gma_lib.ascend import atc, errors
from gma_lib.ascend.atc import AtcError, AtcOptions
from gma_lib.runs.run import DoesNotFit


def test_the_guide_s_command_argument_by_argument():
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


def test_the_newer_flag_of_the_precision():
    options = AtcOptions("310P3", precision_mode_v2="mixed_float16")
    command = atc.build_atc_command("m.onnx", "o", {}, options)
    assert command[-1] == "--precision_mode_v2=mixed_float16"
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
    """atc ignores a typo in the file of --keep_dtype and reports success."""
    atc.lint_keep(("OpType::InstanceNorm", "difference"), models / "GMA_m_1.onnx")
    with pytest.raises(ValueError, match=message):
        atc.lint_keep((line,), models / "GMA_m_1.onnx")


def test_a_model_with_its_manifest(om, models):
    """Modes 0600 and kernel_meta/, which atc leaves, are mended; memory comes from --mode=6."""
    manifest = atc.read_manifest(om)
    assert om.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in om.parent.iterdir()) == ["gma.om", "gma.om.json"]
    assert manifest["soc"] == "Ascend310P3"
    assert manifest["simulated"] is True
    weights = (models / "GMA_m_2.onnx").stat().st_size
    assert manifest["memory_bytes"] == 2 * 1400 * 2**20 + weights
    assert any("W11001" in warning for warning in manifest["warnings"])


def test_a_cached_model_only_when_all_of_it_matches(om, models):
    """The manifest names chip, CANN, ONNX file and flags."""
    source, options = models / "GMA_m_2.onnx", AtcOptions("310P3")
    assert atc.convert_to_om(source, om, options)["reused"]
    assert not atc.convert_to_om(source, om, options, cann="7.0.0")["reused"]
    told = replace(options, precision_mode="force_fp16")
    assert not atc.convert_to_om(source, om, told, cann="7.0.0")["reused"]
    assert not atc.convert_to_om(models / "GMA_m_4.onnx", om, options)["reused"]
    om.write_bytes(b"damaged")
    assert not atc.convert_to_om(models / "GMA_m_4.onnx", om, options)["reused"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("atc-silent", r"exit code 0.*ATC start working"),
        ("atc-no-file", r"left 0 model"),
        ("atc-empty-file", r"left 1 model.*not empty"),
        ("atc-hangs", r"did not end within"),
        ("atc-loader", r"libascend_hal.so.*devlib"),
        (
            "atc-code:EZ3003: No supported Ops kernel and engine are found for [/a], optype "
            "[GridSample].",
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
            "atc-code:[PID: 1] 2026-01-01 Failed_Import(EC0010): Failed to import Python module "
            "[decorator].",
            "decorator",
        ),
        ("atc-code:E13004: File cannot be read", "rights"),
        ("atc-code:E10019: something else", r"not known here \(E10019: something else"),
        ("atc-code:something new", "something new"),
    ],
)
def test_every_way_of_failing_is_a_sentence_and_leaves_nothing(
    standins, models, tmp_path, monkeypatch, fault, message
):
    """Success needs exit code, text and file. Both forms of an error code are read."""
    standins.setenv("STANDIN_FAULT", fault)
    monkeypatch.setattr(atc, "TIMEOUT_S", 1 if fault == "atc-hangs" else 60)
    with pytest.raises(AtcError, match=message) as raised:
        atc.convert_to_om(models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3"))
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_is_no_success(standins):
    """--help exits with 0 and prints no line of success."""
    done = subprocess.run(["atc", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert atc.SUCCESS not in done.stdout


def test_a_failed_run_removes_the_older_model(om, models, standins):
    """What failed leaves nothing that looks like a result."""
    standins.setenv("STANDIN_FAULT", "atc-code:EZ9999: Inner Error")
    with pytest.raises(AtcError, match="internal error"):
        atc.convert_to_om(models / "GMA_m_4.onnx", om, AtcOptions("310P3"))
    assert list(om.parent.iterdir()) == []


def test_the_name_with_system_and_processor(standins, models, tmp_path):
    """atc may call its output <name>_linux_x86_64.om."""
    standins.setenv("STANDIN_FAULT", "atc-suffix")
    atc.convert_to_om(models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3"))
    assert (tmp_path / "gma.om").is_file()


def test_atc_is_not_installed(models, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AtcError, match="ascend-dry-run"):
        atc.convert_to_om(models / "GMA_m_1.onnx", tmp_path / "gma.om", AtcOptions("310P3"))


def test_the_doubled_prefix_is_what_atc_would_refuse(standins, tmp_path):
    """The stand-in refuses AscendAscend310P3, with exit code 255 on stdout."""
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
    """The memory is read from atc --mode=6."""
    manifest = atc.convert_to_om(models / "GMA_m_16.onnx", tmp_path / "gma.om", AtcOptions("310P3"))
    with pytest.raises(DoesNotFit, match=r"batch size 16 needs 23\.5 GB on the card"):
        atc.require_device_memory(manifest, 21534 * 2**20, 16)
    assert atc.require_device_memory(manifest, None, 16) > 0
    assert atc.require_device_memory(manifest | {"memory_bytes": None}, 1, 16) is None


@pytest.mark.parametrize("batch_size", [2, "batch"])
def test_an_input_without_a_fixed_shape_is_refused_by_its_name(tmp_path, batch_size):
    values = [(name, FLOAT, [batch_size, 3]) for name in ("image1", "y")]
    onnx.save(
        make([helper.make_node("Neg", ["image1"], ["y"])], values[:1], values[1:]),
        tmp_path / "m.onnx",
    )
    if batch_size == 2:
        assert atc.read_input_shapes(tmp_path / "m.onnx") == {"image1": (2, 3)}
    else:
        with pytest.raises(ValueError, match=r"image1 of m\.onnx .*\(0, 3\)"):
            atc.read_input_shapes(tmp_path / "m.onnx")
