"""Parameters of the stages: what the notebooks declare, what params/ and the command line set."""

import ast
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from gma_lib.pipeline.stages import STAGES, read_cells
from gma_lib.runs.files import RESOURCES, shorten_path
from gma_lib.runs.records import Record, parse_yaml
from gma_lib.runs.run import Run, open_run

PARAMS = RESOURCES / "params"
# Parameters of the runner itself, besides those that the notebooks declare
RUNNER_PARAMETERS = {"limit_s": "float", "cell_limit_s": "float"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "None": type(None),
}


class WrongParameters(ValueError):
    """Parameters that no notebook would accept."""

    exit_code = 2


@dataclass(frozen=True)
class Parameter:
    """Type and default of a parameter, as its notebook declares them."""

    annotation: str
    default: object


@functools.cache
def read_parameters(stage: str) -> dict[str, Parameter]:
    """Read the parameters of a notebook from its tagged cell: ``name = literal  # type: int|None -
    what it is``.

    papermill reads the same lines (``papermill --help-notebook``), and gives the same; importing it
    takes 2.4 s, which every stage that is up to date would pay.
    """
    tagged = [
        cell for cell in read_cells(stage) if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(tagged) != 1:
        raise ValueError(
            f"notebooks/{stage}.ipynb has {len(tagged)} cells tagged 'parameters'; it needs one"
        )
    parameters = {}
    for line in "".join(tagged[0]["source"]).splitlines():
        match = re.fullmatch(r"(\w+) = (.+?)  # type: (\S+)( - .*)?", line)
        if match is None:
            raise ValueError(f"notebooks/{stage}.ipynb: not 'name = value  # type: ...': {line}")
        parameters[match[1]] = Parameter(match[3], ast.literal_eval(match[2]))
    return parameters


def resolve_parameters(profile: str, batch_size: object, overrides: Record) -> Record:
    """Merge ``params/common.yaml``, the profile's file, the batch size's file and the overrides,
    later ones winning, and check them.

    Raises
    ------
    WrongParameters
        For a name that no notebook declares, with the nearest known one, or a value of another type
        than declared.
    """
    files = [PARAMS / "common.yaml", PARAMS / f"{profile}.yaml", PARAMS / f"bs{batch_size}.yaml"]
    if not files[1].is_file():
        profiles = sorted(path.stem for path in PARAMS.glob("*.yaml") if _is_profile(path))
        raise WrongParameters(f"there is no profile {profile!r}; there are: {', '.join(profiles)}")
    merged: Record = {"batch_size": batch_size}
    for file in files:
        if file.is_file():
            merged |= _read_yaml(file)
    merged |= overrides | {"profile": profile}
    known = RUNNER_PARAMETERS | {
        name: parameter.annotation
        for stage in STAGES
        for name, parameter in read_parameters(stage).items()
    }
    for name, value in merged.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
            )
            raise WrongParameters(f"no notebook has a parameter {name!r}; {hint}")
        if not fits_type(value, known[name]):
            raise WrongParameters(f"{name} is {known[name]}, not {value!r}")
    return merged


def _is_profile(path: Path) -> bool:
    return path.stem not in ("common", "train") and not path.stem.removeprefix("bs").isdigit()


def _read_yaml(path: Path) -> Record:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except ValueError as error:
        raise WrongParameters(f"{shorten_path(path)}: {error}") from error
    if not isinstance(content, dict):
        raise WrongParameters(
            f"{shorten_path(path)} holds a {type(content).__name__}, not 'name: value' lines"
        )
    return content


def fits_type(value: object, annotation: str) -> bool:
    """Return whether a value is of a type written as ``int``, ``list[str]``, ``str|None``, ..."""
    for option in annotation.split("|"):
        if option.startswith("list["):
            if isinstance(value, list) and all(fits_type(item, option[5:-1]) for item in value):
                return True
        elif isinstance(value, bool) and option != "bool":
            continue  # True is an int to Python only
        elif isinstance(value, _TYPES[option]):
            return True
    return False


def parse_override(text: str) -> tuple[str, object]:
    """Split ``name=value``, with the value read as YAML: numbers, lists, true, null."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise WrongParameters(f"{text!r} is not name=value")
    try:
        return name, parse_yaml(value)
    except ValueError as error:
        raise WrongParameters(f"{name}: {error}") from error


def make_run(parameters: Record) -> Run:
    """Return the run that the parameters describe; check those that all notebooks share."""
    shared = {
        name: parameters[name]
        for name in ("profile", "backend", "precision", "batch_size", "run", "outputs")
        if name in parameters
    }
    try:
        return open_run(**shared)
    except ValueError as error:
        raise WrongParameters(str(error)) from error
