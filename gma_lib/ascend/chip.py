"""Which Ascend chip this is, as the tools name it."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

from gma_lib.ascend.tool import run_briefly
from gma_lib.runs import Record
from gma_lib.runs.files import locate_path

NAME = re.compile(r"(?:Ascend ?)?(?:310|910|950)[A-Za-z0-9_-]*")
# NPU ID, chip ID, logic ID, perhaps another number, and the name
MAPPING = re.compile(r"\s*[0-9]+\s+[0-9]+\s+([0-9]{1,9})\s+(?:[0-9]+\s+)?(\S.*)")
HEALTH = "OK|Warning|Alarm|Critical|UNKNOWN"
BUSY = "-8020"


class NoChipFound(RuntimeError):
    """No card was found, and why."""


@dataclass(frozen=True)
class Chip:
    """One chip that can be asked to compute.

    Attributes
    ----------
    soc
        As ``atc --soc_version`` wants it: ``Ascend310P3``.
    device
        As ``ais_bench --device`` wants it: the logic ID, never the NPU ID, which can be 32768.
        None: not known from this source.
    memory_bytes
        The chip's own; None where the source does not say.
    source
        Which tool or file told.
    """

    soc: str
    device: int | None
    memory_bytes: int | None
    source: str


@dataclass(frozen=True)
class Card:
    """Which card to use, and what its tools are told.

    Attributes
    ----------
    soc
        Chip to convert for, such as ``310P3``; None: the one that is found.
    keep
        What stays float32 in a float16 model, a key of ``gma_lib.ascend.keep.CHOICES``; None: what
        the guide keeps.
    device
        Logic ID of the chip that computes, 0 to 255; None: 0.
    ais_python
        Interpreter that has ais_bench; None: this one, else ``python3``.
    precision_mode_v2
        What atc is told instead of ``precision_mode``, from CANN 7.0 on; None: nothing.
    dry_run
        Folder of a dry run whose results were brought back; None: the card is here.
    """

    soc: str | None = None
    keep: str | None = None
    device: int | None = None
    ais_python: str | None = None
    precision_mode_v2: str | None = None
    dry_run: str | None = None

    @classmethod
    def choose(cls, settings: Record, dry_run: str | None = None) -> Self:
        """Return the card that a run's settings describe; the folder starts at the project."""
        names = {field.name for field in fields(cls)} & settings.keys()
        return cls(
            **{name: settings[name] for name in names},
            dry_run=dry_run and str(locate_path(dry_run)),
        )

    def require_made_for(self, soc: str, keep: str | None, precision_mode_v2: str | None) -> None:
        """Raise ValueError unless a model that was made so is this card's: for its chip, if that is
        given, keeping the same in float32, told the precision alike.
        """
        made = {"soc": to_soc_version(soc), "keep": keep, "precision_mode_v2": precision_mode_v2}
        mine = {
            "soc": to_soc_version(self.soc or soc),
            "keep": self.keep or "guide",
            "precision_mode_v2": self.precision_mode_v2,
        }
        for name, word in mine.items():
            if made[name] != word:
                raise ValueError(
                    f"{name} is {made[name]} for the other machine, and {word} in 02_export: "
                    "change it there, run that again and then make ascend-dry-run"
                )


def to_soc_version(name: str) -> str:
    """``310P3``, ``Ascend310P3``, ``Ascend 310P3`` -> ``Ascend310P3``: the prefix exactly once,
    whoever wrote it before.

    Raises
    ------
    ValueError
        For a name that no chip has.
    """
    bare = re.sub(r"\s+", "", name)
    bare = re.sub(r"^(Ascend)+", "", bare, flags=re.IGNORECASE)
    if not re.fullmatch(r"(310|910|950)[A-Za-z0-9_-]*", bare):
        raise ValueError(
            f"{name!r} names no Ascend chip; expected is something like 310P3, Ascend310P3 or "
            "910B3 (npu-smi info shows it)"
        )
    return f"Ascend{bare}"


def find_chips(
    *,
    word: str | None = None,
    python: str = "python3",
    environment: Mapping[str, str] | None = None,
) -> list[Chip]:
    """Find this machine's chips: as the user names them, else as the runtime
    (``acl.get_soc_name``), ``npu-smi info -m`` or its table says, in this order.

    Parameters
    ----------
    word
        The chip as the user names it: for a machine without a card, which can convert all the same.
    python
        An interpreter that may have CANN's ``acl``.
    environment
        Environment of the tools; this process's when None.

    Raises
    ------
    NoChipFound
        With what each source answered.
    """
    table, complaint = _npu_smi(["info"], environment)
    in_table = parse_table(table)
    if word:
        soc = to_soc_version(word)
        return _name([chip for chip in in_table if chip.soc == soc], soc, "named by the user")
    in_mapping = [
        _with_memory(_exact(chip, table, environment), in_table)
        for chip in parse_mapping(_npu_smi(["info", "-m"], environment)[0])
    ]
    if found := _soc_of_runtime(python, environment):
        return _name(in_mapping or in_table, found, "acl.get_soc_name")
    if in_mapping or in_table:
        return in_mapping or [_exact(chip, table, environment) for chip in in_table]
    raise NoChipFound(
        "no Ascend chip was found (acl.get_soc_name: not available; npu-smi: "
        f"{complaint or 'its table lists no chip'}). To convert for one that is elsewhere, name "
        "it: SOC=310P3"
    )


def list_chips(environment: Mapping[str, str]) -> list[Chip]:
    """As ``find_chips``; none where no source answers."""
    try:
        return find_chips(environment=environment)
    except NoChipFound:
        return []


def choose_chip(chips: list[Chip], device: int | None) -> Chip:
    """Return the chip with the logic ID ``device`` (None: 0), or the first where none is known to
    have it.
    """
    return next((chip for chip in chips if chip.device == (device or 0)), chips[0])


def _name(chips: list[Chip], soc: str, source: str) -> list[Chip]:
    """The chips under a name that somebody knows; one of which nothing else is known if none."""
    return [replace(chip, soc=soc, source=source) for chip in chips] or [
        Chip(soc, None, None, source)
    ]


def _with_memory(chip: Chip, in_table: list[Chip]) -> Chip:
    """Add the memory, which only the table shows; both list chips in the order of logic IDs."""
    memory = {other.device: other.memory_bytes for other in in_table}
    return replace(chip, memory_bytes=memory.get(chip.device))


def _soc_of_runtime(python: str, environment: Mapping[str, str] | None) -> str | None:
    code = "import acl; print('soc:', acl.get_soc_name())"
    try:
        done = run_briefly([python, "-c", code], environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    named = re.search(r"^soc: *(\S.*)$", done.stdout, re.M) if done.returncode == 0 else None
    try:
        return to_soc_version(named[1]) if named else None
    except ValueError:  # acl answers None where no device is
        return None


def _npu_smi(arguments: list[str], environment: Mapping[str, str] | None) -> tuple[str, str]:
    """(what it printed, what is wrong); one of them is empty."""
    try:
        done = run_briefly(["npu-smi", *arguments], environment)
    except FileNotFoundError:
        return "", "not installed (it comes with the driver)"
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"no answer ({type(error).__name__})"
    text = done.stdout + done.stderr
    if BUSY in text:
        return (
            "",
            "another container or virtual machine holds the card (-8020): stop that one, or hand "
            "the card to this one",
        )
    if "dcmi" in text and "failed" in text:
        return (
            "",
            f"the driver does not answer ({text.strip().splitlines()[0]}): check that it is "
            "installed and that this user may use "
            f"/dev/davinci*",
        )
    if "libdrvdsmi" in text:
        return (
            "",
            "the driver's library libdrvdsmi is missing: install the driver, or add its lib64 "
            "folder to LD_LIBRARY_PATH",
        )
    return (
        (done.stdout, "")
        if done.returncode == 0
        else ("", f"exit code {done.returncode}: {text.strip()[:200]}")
    )


def parse_mapping(text: str) -> list[Chip]:
    """Chips of ``npu-smi info -m``: NPU ID, Chip ID, Chip Logic ID, Chip Name; rows of the
    management controller (Mcu) are none.
    """
    chips = []
    for line in text.splitlines():
        row = MAPPING.match(line)
        if row and NAME.fullmatch(row[2].strip()):
            chips.append(Chip(to_soc_version(row[2]), int(row[1]), None, "npu-smi info -m"))
    return chips


def parse_table(text: str) -> list[Chip]:
    """Chips of the table of ``npu-smi info``, in any of its shapes; the processes below it look
    like cards and are none.

    The table shows no logic ID: chips are counted from 0 in the order of the table, as the driver
    numbers them where none is missing.
    """
    chips: list[Chip] = []
    lines = text.split("Process id")[0].splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=False):
        row = re.match(rf"\|\s*\d+\s+({NAME.pattern})\s*\|\s*({HEALTH})\s*\|", line)
        if row:
            totals = [int(total) for total in re.findall(r"[0-9]\s*/\s*([0-9]{1,9})", below)]
            memory = max(totals, default=0) * 2**20 or None
            chips.append(Chip(to_soc_version(row[1]), len(chips), memory, "npu-smi info"))
    return chips


def _exact(chip: Chip, table: str, environment: Mapping[str, str] | None) -> Chip:
    """A3 and 950 call themselves ``Ascend910`` in tables; their board says which one:
    ``Ascend910_9391``.
    """
    if chip.soc not in ("Ascend910", "Ascend950"):
        return chip
    npu = re.search(r"^\|\s*(\d+)\s+(?:Ascend ?)?(?:910|950)\s*\|", table, re.M)
    board = ["info", "-t", "board", "-i", npu[1], "-c", "0"] if npu else []
    text = _npu_smi(board, environment)[0] if npu else ""
    names = re.search(r"Chip Name\s*:\s*(\S+)", text), re.search(r"NPU Name\s*:\s*(\S+)", text)
    if not names[0] or not names[1]:
        return chip
    soc = to_soc_version(f"{names[0][1]}_{names[1][1]}")
    return replace(chip, soc=soc, source="npu-smi info -t board")
