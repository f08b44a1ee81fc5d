"""Which chip this is."""

import sys
import time

import pytest

from gma_lib.ascend import atc, chip, errors, toolkit
from gma_lib.pipeline.parameters import WrongParameters, resolve_parameters
from gma_lib.runs.files import PROJECT


@pytest.mark.parametrize(
    "word", ["310P3", "Ascend310P3", "Ascend 310P3", "AscendAscend310P3", " 310P3 "]
)
def test_the_prefix_stands_exactly_once(word):
    assert chip.to_soc_version(word) == "Ascend310P3"


NAMES = [
    "310",
    "310P1",
    "310P3",
    "310P5",
    "310P7",
    "310P3vir01",
    "310P3vir02",
    "310P3vir04",
    "310P3vir08",
    "310B1",
    "310B2",
    "310B3",
    "310B4",
    "910A",
    "910ProA",
    "910B",
    "910ProB",
    "910PremiumA",
    "910B1",
    "910B2",
    "910B3",
    "910B4",
    "910B2C",
    "910B4-1",
    "910_9391",
    "910_9392",
    "910_9381",
    "910_9382",
    "910_9372",
    "910_9362",
    "950PR",
    "950DT",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_chip_s_name(name):
    """A name is read as atc takes it, from the table, and from the mapping, with a space."""
    assert chip.to_soc_version(name) == f"Ascend{name}"
    row = (
        f"| 0       {name}     | Critical        | 0.0          47                "
        "15   / 15             |"
    )
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
    standins.setenv("STANDIN_SOC", "310P1")
    found = chip.find_chips(python=sys.executable)
    assert [(one.soc, one.device, one.source) for one in found] == [
        ("Ascend310P1", 0, "acl.get_soc_name"),
        ("Ascend310P1", 1, "acl.get_soc_name"),
    ]


def test_then_the_mapping_with_logic_ids(standins):
    """NPU ids 32768 and 33024 are no device ids; the Mcu is no chip."""
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
    """Rows of the process table are no cards, although one here looks like
    it; Bus-Id NA, Health Alarm.
    """
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NO_MAPPING", "1")
    standins.setenv("STANDIN_NPU_SMI", kind)
    found = chip.find_chips(python=sys.executable)
    assert [(one.soc, one.memory_bytes) for one in found] == expected


def test_the_a3_is_told_by_its_board(standins):
    """The name is ChipName_NPUName."""
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NPU_SMI", "A3")
    assert [(one.soc, one.device) for one in chip.find_chips(python=sys.executable)] == [
        ("Ascend910_9391", 0),
        ("Ascend910_9391", 1),
    ]


@pytest.mark.parametrize("named", [32768, -1, "0,1"])
def test_a_device_is_one_logic_id(named):
    """An NPU id of the table is no device id, and a list of ids would start several processes."""
    with pytest.raises(WrongParameters, match=f"device .* {named!r}"):
        resolve_parameters("tiny", {"batch_size": 1, "device": named})


def test_the_user_s_word_goes_before_all(standins):
    assert chip.find_chips(word="910B3", python=sys.executable)[0].soc == "Ascend910B3"


@pytest.mark.parametrize(
    ("kind", "message"),
    [("busy", "-8020"), ("nodriver", "driver does not answer"), ("nolib", "libdrvdsmi")],
)
def test_no_chip_says_why_and_what_to_do(standins, kind, message):
    standins.setenv("STANDIN_NO_ACL", "1")
    standins.setenv("STANDIN_NPU_SMI", kind)
    with pytest.raises(chip.NoChipFound, match=rf"{message}.*SOC=310P3"):
        chip.find_chips(python=sys.executable)


def test_no_driver_at_all(monkeypatch):
    """npu-smi is not installed."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(chip.NoChipFound, match="not installed"):
        chip.find_chips(python=sys.executable)


LONG = 150_000


@pytest.mark.parametrize(
    "text",
    [
        "1" * LONG,
        "1 " * LONG,
        "0 0 0 Ascend310P3" + " " * LONG + "x",
        "0 0 " + "9" * LONG + " Ascend310P3",
        "| 0 310P3 | OK |\n| " + "1" * LONG,
        "| 0 310P3 | OK |\n| " + "1 " * LONG,
        "| 0 310P3 | OK |\n| 1 / " + "9" * LONG,
        "| 0 " + "Ascend310" * LONG,
        "|" + " " * LONG,
        "aclrtMalloc " * LONG,
        "memory_size[" * LONG,
        "version=" + " " * LONG,
    ],
)
def test_long_lines_of_tools_take_no_longer_than_their_length(tmp_path, text, monkeypatch):
    text = text[:LONG]
    (tmp_path / "version.cfg").write_text(text)
    monkeypatch.setattr(atc, "run_tool", lambda *arguments, **options: (0, text))
    started = time.process_time()
    chip.parse_mapping(text)
    chip.parse_table(text)
    toolkit.read_version(tmp_path)
    atc.read_memory(tmp_path / "a.om")
    errors.explain_atc_error(text)
    errors.explain_ais_error(text, last="")
    errors.find_line(text, errors.OUT_OF_MEMORY)
    assert time.process_time() - started < 2


def test_a_card_is_what_the_settings_say():
    """The folder of a dry run starts at the project, wherever a notebook runs."""
    card = chip.Card.choose({"soc": "310P3", "device": 1, "backend": "ascend"}, "outputs/x")
    assert card == chip.Card(soc="310P3", device=1, dry_run=str(PROJECT / "outputs" / "x"))
    assert chip.Card.choose({}, None) == chip.Card()


@pytest.mark.parametrize(("device", "memory"), [(None, 1), (0, 1), (1, 2), (7, 1)])
def test_a_device_s_memory_is_its_own(device, memory):
    found = [chip.Chip("Ascend310P3", number, number + 1, "npu-smi") for number in (0, 1)]
    assert chip.choose_chip(found, device).memory_bytes == memory
