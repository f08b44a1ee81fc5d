"""The file of expected values, and how a run's values compare with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from gma_lib.runs.files import RESOURCES, BadFile
from gma_lib.runs.machine import (
    count_cores,
    describe_computing,
    find_commit,
    find_processor,
    find_versions,
    identify_processor,
)
from gma_lib.runs.records import Record, read_json, write_json
from gma_lib.verify.values import KINDS, Value

EXPECTED = RESOURCES / "expected"
FAILURES = ("outside", "missing", "unexpected")


# What is printed: an archive may be anybody's
_Text = Annotated[str, Strict(), Field(max_length=1000, pattern=r"^\P{C}*$")]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Tolerance = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


class _Kind(TypedDict):
    depends_on: list[_Text]
    elsewhere: _Tolerance | None


class _Judged(TypedDict):
    surroundings: dict[_Text, _Text]
    kinds: dict[_Text, _Kind]
    values: dict[_Text, tuple[_Text, _Text, None] | tuple[_Text, _Number, _Tolerance]]


class _Change(TypedDict):
    date: _Text


class _Expected(_Judged):
    parameters: dict[str, object]
    history: Annotated[list[_Change], Field(min_length=1)]


@dataclass(frozen=True)
class Verdict:
    """How one entry compares.

    Attributes
    ----------
    status
        ``equal``; ``within`` its tolerance; ``outside`` of it; ``reported``, where it depends on
        something that differs here, and is another digest, or a number outside of its tolerance but
        within the wider one for this case; ``missing`` from the run; ``unexpected`` in it.
    tolerance
        The wider one if the usual one does not suffice, and something that the entry depends on
        differs here.
    ratio
        Difference over ``tolerance``: at most 1 is within. Infinite for digests that differ.
    because
        What differs here, for ``reported``.
    """

    name: str
    kind: str
    expected: float | str | None
    found: float | str | None
    tolerance: float | None
    ratio: float
    status: str
    because: str = ""


def locate_expected(profile: str) -> Path:
    """Return the file that holds a profile's expected values."""
    return EXPECTED / f"{profile}.json"


def describe_surroundings() -> dict[str, str]:
    """What may decide digits besides the code: versions, processor, instruction sets, threads."""
    # PyTorch's CPU and CUDA builds compute alike on a CPU
    versions = {name: version.split("+")[0] for name, version in find_versions().items()}
    # Of virtual machines, the name alone does not tell processors apart
    hardware = {
        "processor": find_processor(),
        "processor's instructions": identify_processor(),
        **describe_computing(),
    }
    return versions | hardware | {"cores": str(count_cores())}  # as many threads as OpenVINO takes


def write_expected(
    path: Path, values: Mapping[str, Value], *, parameters: Record, reason: str
) -> None:
    """Record a run's values as what every later run has to give.

    Parameters
    ----------
    parameters
        What was computed: ``read_run_parameters``.
    reason
        Why the values changed, one sentence; earlier ones are kept.
    """
    history = read_expected(path)["history"] if path.is_file() else []
    now = datetime.now(UTC).date().isoformat()
    history.append({"date": now, "commit": find_commit(), "reason": reason})
    content = describe_values(values, describe_surroundings())
    write_json(path, {"parameters": parameters, "history": history} | content)


def describe_values(values: Mapping[str, Value], surroundings: Mapping[str, str]) -> Record:
    """Put values into a record that ``judge_values`` takes: with their kinds, and what may decide
    digits, as ``describe_surroundings`` lists it.

    Raises
    ------
    ValueError
        An entry is neither a digest nor a finite number with a tolerance.
    """
    described: Record = {
        "surroundings": dict(surroundings),
        "kinds": {
            name: {
                "unit": kind.unit,
                "reason": kind.reason,
                "depends_on": list(kind.depends_on),
                "elsewhere": kind.elsewhere,
            }
            for name, kind in KINDS.items()
        },
        "values": {name: [one.kind, one.value, one.tolerance] for name, one in values.items()},
    }
    _require_kind(_Judged, described)
    return described


def read_expected(path: Path) -> Record:
    """Read expected values.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it was changed, it is of another version, or it holds an entry that
        is neither a digest nor a finite number with a tolerance of at least zero.
    """
    expected = read_json(path, made_by="gma record")
    try:
        _require_kind(_Expected, expected)
    except ValueError as error:
        found = "values as gma record writes them"
        raise BadFile(path, str(error), found, "Take the file as it was") from None
    return expected


def _require_kind(kind: type, content: Record) -> None:
    """Raise ValueError, with the first place, where content is not of a kind."""
    try:
        TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        wrong = error.errors()[-1]
        place = " ".join(str(part) for part in wrong["loc"] if not str(part).startswith("tuple["))
        place = place if place.isprintable() and len(place) < 200 else ascii(place[:40])
        found = wrong["msg"].removeprefix("Input ")
        raise ValueError(f"{place} {found}, not {str(wrong['input'])[:40]!a}") from None


def require_same_work(expected: Record, parameters: Record) -> None:
    """Raise ValueError, with the first parameter that differs, unless a run did the same work."""
    recorded = expected["parameters"]
    for name in dict.fromkeys([*recorded, *parameters]):
        if recorded.get(name) != parameters.get(name):
            raise ValueError(
                f"the expected values are of {name} = {recorded.get(name)}, and this run has "
                f"{parameters.get(name)}: restore the profile's file in params/, or record new "
                "values (gma record)"
            )


def require_same_plan(expected: Record, resolved: Record) -> None:
    """As ``require_same_work``, before any work, for what a run's resolved parameters say."""
    known = {name: name for name in ("batch_size", "num_updates", "attention", "checkpoint")}
    if resolved.get("sintel_root") is None:
        known |= {"height": "demo_height", "width": "demo_width"}
    planned = {name: resolved[given] for name, given in known.items() if given in resolved}
    require_same_work(expected, expected["parameters"] | planned)


def find_differences(there: Mapping[str, str]) -> dict[str, str]:
    """Say, by name, which versions and hardware differ here from those of another computation.

    What is not known of it is no difference.
    """
    here = describe_surroundings()
    return {
        name: f"{name}: {there[name]} there, {here.get(name, 'none')} here"
        for name in sorted(there)
        if here.get(name) != there[name]
    }


def judge_values(
    values: Mapping[str, Value], expected: Record, *, digests: bool = True
) -> list[Verdict]:
    """Compare a run's values with expected ones, entry by entry.

    Parameters
    ----------
    expected
        What ``read_expected`` returns.
    digests
        Compare digests too; without them, numbers have to show what changed.

    Returns
    -------
    list of Verdict
        In the order of the stages.
    """
    differs = find_differences(expected["surroundings"])
    verdicts = []
    for name in dict.fromkeys([*expected["values"], *values]):
        recorded = Value(*expected["values"].get(name, (None, None, None)))
        found = values.get(name, Value("", None))
        kind = found.kind or recorded.kind
        of_kind = expected["kinds"].get(kind, {})
        if not digests and recorded.tolerance is None and found.tolerance is None:
            continue
        differing = [differs[one] for one in of_kind.get("depends_on", ()) if one in differs]
        wider = of_kind.get("elsewhere") if differing else None
        status, ratio, tolerance = _judge_one(recorded, found, wider)
        if status == "outside" and differing and recorded.tolerance is found.tolerance is None:
            status = "reported"
        if name not in values or not recorded.kind:
            status = "unexpected" if name in values else "missing"
        because = "; ".join(differing) if status == "reported" else ""
        verdicts.append(
            Verdict(name, kind, recorded.value, found.value, tolerance, ratio, status, because)
        )
    return verdicts


def _judge_one(
    recorded: Value, found: Value, wider: float | None
) -> tuple[str, float, float | None]:
    """Status, difference over tolerance, and the tolerance: the wider one if the usual does not
    suffice.
    """
    tolerance = recorded.tolerance
    ratio = _compare_one(recorded, found, tolerance)
    if ratio <= 1:
        return "within" if ratio else "equal", ratio, tolerance
    if wider is not None and tolerance is not None:
        tolerance = max(tolerance, wider)
        ratio = _compare_one(recorded, found, tolerance)
    return "reported" if ratio <= 1 else "outside", ratio, tolerance  # NaN is outside


def _compare_one(recorded: Value, found: Value, tolerance: float | None) -> float:
    if recorded.kind != found.kind:
        return math.inf
    if recorded.value == found.value:
        return 0.0
    if isinstance(recorded.value, str | None) or isinstance(found.value, str | None):
        return math.inf
    if recorded.kind == "distance":  # a size, of which less is as good
        return max(found.value - recorded.value, 0.0) / (tolerance or math.inf)
    difference = abs(recorded.value - found.value)
    return difference / tolerance if tolerance else math.inf
