"""Parameters of the stages: their types and ranges, and what params/ and the command line set."""

import ast
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from gma_lib.ascend.chip import to_soc_version
from gma_lib.backends import BACKENDS
from gma_lib.data.demo import DEMO_SCENES
from gma_lib.data.sintel import PASSES, SPLITS, find_pairs
from gma_lib.flow.colours import PALETTES
from gma_lib.network import (
    ATTENTIONS,
    LARGEST_BATCH,
    MOST_UPDATES,
    OPSETS,
    SEEDED,
    SMALLEST_SIDE,
    choose_opset,
)
from gma_lib.pipeline.stages import STAGES, read_cells
from gma_lib.runs.clusters import check_cluster
from gma_lib.runs.files import RESOURCES, locate_path, shorten_path
from gma_lib.runs.precisions import PRECISIONS, PRECISIONS_V2
from gma_lib.runs.records import Record, parse_yaml, read_yaml
from gma_lib.runs.run import check_folder_name

PARAMS = RESOURCES / "params"
REQUIRED = "???"  # in a profile's file: a value that has to be given


class WrongParameters(ValueError):
    """Parameters that no notebook would accept."""


def _pass_through(check: Callable[..., object]) -> AfterValidator:
    """Check with a function that raises ValueError, and keep the value as it was given."""
    return AfterValidator(lambda value: (check(value), value)[1])


def _one_of(names: Iterable[str]) -> AfterValidator:
    def check(value: str) -> None:
        if value not in names:
            raise ValueError(f"should be one of {', '.join(names)}")

    return _pass_through(check)


def _check_path(text: str) -> None:
    if not text or re.search("[\0\n\r\ud800-\udfff]", text):  # those mark bytes outside UTF-8
        raise ValueError("should be a path in UTF-8 without newlines")


def _check_items(items: list[str]) -> None:
    if len(set(items)) != len(items) or not items:
        raise ValueError("should list at least one name, and each once")


_Path = Annotated[str, _pass_through(_check_path)]
_Folder = Annotated[str, _pass_through(check_folder_name)]
_Count = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
_Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=8192)]
_Seconds = Annotated[float, Field(gt=0, le=1e7)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@with_config(_STRICT)
class Settings(TypedDict, total=False):
    """Parameters that decide a run's result, set in 02_export and recorded in run.json.

    Attributes
    ----------
    precision
        None: float32, or float16 for ascend.
    lookup
        None: what suits the backend.
    opset
        None: what suits the lookup.
    at_once
        None: the whole batch.
    """

    backend: Annotated[str, _one_of(BACKENDS)]
    precision: Annotated[str, _one_of(PRECISIONS)] | None
    batch_size: _Count
    checkpoint: _Path
    num_updates: Annotated[int, Field(ge=1, le=MOST_UPDATES)]
    attention: Annotated[str, _one_of(ATTENTIONS)]
    lookup: Annotated[str, _one_of(OPSETS)] | None
    opset: int | None
    save_work: bool
    at_once: _Count | None
    soc: Annotated[str, _pass_through(to_soc_version)] | None
    keep: Literal["guide", "coordinates"] | None  # its table loads onnx
    device: Annotated[int, Field(ge=0, le=255)] | None
    ais_python: _Path | None
    precision_mode_v2: Annotated[str, _one_of(PRECISIONS_V2)] | None


@with_config(_STRICT)
class Parameters(Settings, total=False):
    """All parameters, of every notebook and of the runner itself (``limit_s``, ``cell_limit_s``,
    ``keep_flow``).

    ``params/`` and the notebooks say what each is.
    """

    outputs: _Path
    profile: _Folder
    run: _Folder | None
    cluster: Annotated[str, _pass_through(check_cluster)]
    limit_s: _Seconds
    cell_limit_s: _Seconds
    keep_flow: bool
    sintel_root: _Path | None
    split: Annotated[str, _one_of(SPLITS)]
    passes: Annotated[list[Annotated[str, _one_of(PASSES)]], _pass_through(_check_items)]
    scenes: Annotated[list[str], _pass_through(_check_items)] | None
    demo_height: _Side
    demo_width: _Side
    demo_frames: Annotated[int, Field(ge=2, le=9999)]
    tensors: bool
    plain_names: bool
    palette: Annotated[str, _one_of(PALETTES)]
    full_batch_size: _Count | None
    subset_pairs_per_scene: Annotated[int, Field(ge=0, le=10**6)]
    weights_and_data_are_published: bool
    look_at: str | None
    classical_pairs: Annotated[int, Field(ge=0)]
    viewer_pairs: Annotated[int, Field(ge=0)]
    budget_s: _Seconds
    dry_run: _Path | None


SETTINGS = tuple(Settings.__annotations__)
_KNOWN = tuple(Parameters.__annotations__)
_CHECKED = TypeAdapter(Parameters)


def check_parameters(given: Mapping[str, object]) -> Record:
    """Return the given values that are parameters, once their types and ranges are checked.

    Parameters
    ----------
    given
        Name -> value; what is no parameter is left out, so a notebook passes its ``globals()``.

    Raises
    ------
    WrongParameters
        A value of another type or out of range, or one that the profile requires and has not got.
    """
    named: Record = {name: given[name] for name in _KNOWN if name in given}
    try:
        _CHECKED.validate_python(named)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise WrongParameters(f"{name} {problem}, not {first['input']!r}") from None
    if "backend" in named:
        _check_form(named["backend"], named.get("lookup"), named.get("opset"))
    for name, value in _read_profile(named["profile"]).items():
        if value == REQUIRED and named.get(name, "") in (None, REQUIRED):
            raise WrongParameters(f"profile {named['profile']!r} needs {name}: give its path")
    return named


def _check_form(backend: str, asked: str | None, opset: int | None) -> None:
    """Raise WrongParameters for a form that cannot be exported, or that the backend cannot run."""
    lookup, kind = choose_lookup(backend, asked), BACKENDS[backend]
    if lookup != kind.lookup and not kind.any_lookup:
        raise WrongParameters(
            f"lookup should be {kind.lookup!r} or null for backend {backend}, not {lookup!r}"
        )
    if choose_opset(lookup, opset) not in (allowed := OPSETS[lookup]):
        raise WrongParameters(
            f"opset should be {allowed[0]} to {allowed[-1]} for lookup {lookup!r}, not {opset}"
        )


def choose_precision(backend: str, precision: str | None) -> str:
    """Return the precision asked for; None: float32, or what the guide's card computes in."""
    return precision or ("float16" if backend == "ascend" else "float32")


def choose_lookup(backend: str, lookup: str | None) -> str:
    """Return the lookup asked for; None: what suits the backend."""
    return lookup or BACKENDS[backend].lookup


def read_parameters(stage: str) -> dict[str, object]:
    """Read the names and defaults of a notebook's parameters from its tagged cell.

    papermill reads the same lines (``papermill --help-notebook``), and gives the same; importing it
    takes 2.4 s, which a run that is up to date would pay.
    """
    source = next(
        "".join(cell["source"])
        for cell in read_cells(stage)
        if "parameters" in cell["metadata"].get("tags", [])
    )
    return {
        ast.unparse(line.targets[0]): ast.literal_eval(line.value)
        for line in ast.parse(source).body
        if isinstance(line, ast.Assign)
    }


def resolve_parameters(profile: str, overrides: Mapping[str, object]) -> Record:
    """Merge ``params/common.yaml``, the profile's file, the batch size's file and the overrides,
    later ones winning, and check them.

    Raises
    ------
    WrongParameters
        For a name that no notebook declares, with the nearest known one, a wrong value, or a data
        set, scenes or weights that are not there.
    """
    merged = _read_yaml(PARAMS / "common.yaml") | _read_profile(profile)
    sizes = PARAMS / f"bs{overrides['batch_size']}.yaml"
    merged |= (_read_yaml(sizes) if sizes.is_file() else {}) | dict(overrides)
    if merged.get("profile") != profile:
        raise WrongParameters(
            f"the profile is {profile!r}, and params/{profile}.yaml or another setting says "
            f"profile: {merged.get('profile')!r}"
        )
    for name in merged:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_KNOWN)}"
            raise WrongParameters(f"no notebook has a parameter {name!r}; {hint}")
    check_parameters(merged)
    root, weights = merged.get("sintel_root"), merged["checkpoint"]
    if root is not None and not locate_path(root).is_dir():
        raise WrongParameters(f"sintel_root: {locate_path(root)} is no folder")
    files = STAGES["02_export"].list_inputs(merged)
    if weights != SEEDED and not any(path.is_file() for path in files):
        raise WrongParameters(
            f"checkpoint: {weights} is neither a file nor one of the bundled weights"
        )
    if merged.get("scenes") is not None:
        _require_scenes(merged)
    return merged


def _require_scenes(given: Record) -> None:
    """Raise WrongParameters unless the data set has the scenes that are asked for."""
    root, scenes = given.get("sintel_root"), given["scenes"]
    rendered = [scene.name for scene in DEMO_SCENES]
    try:
        if root is not None:
            for name in given["passes"]:
                find_pairs(Path(root), split=given["split"], pass_name=name, scenes=scenes)
        elif unknown := [scene for scene in scenes if scene not in rendered]:
            raise ValueError(f"no scene {unknown[0]!r}; there are: {', '.join(rendered)}")
    except (ValueError, OSError) as error:
        raise WrongParameters(f"scenes: {error}") from error


def list_profiles() -> list[str]:
    """Names of the files in ``params/`` that hold a profile."""
    return sorted(
        path.stem
        for path in PARAMS.glob("*.yaml")
        if path.stem not in ("common", "train", "recipe")
        and not path.stem.removeprefix("bs").isdigit()
    )


def _read_profile(name: str) -> Record:
    profiles = list_profiles()
    if name not in profiles:
        raise WrongParameters(f"there is no profile {name!r}; there are: {', '.join(profiles)}")
    return _read_yaml(PARAMS / f"{name}.yaml")


def _read_yaml(path: Path) -> Record:
    try:
        content = read_yaml(path) or {}
    except ValueError as error:
        raise WrongParameters(f"{shorten_path(path)}: {error}") from error
    if not isinstance(content, dict):
        raise WrongParameters(
            f"{shorten_path(path)} holds a {type(content).__name__}, not 'name: value' lines"
        )
    return content


def parse_overrides(texts: Iterable[str]) -> Record:
    """Return the values of ``name=value`` by name; WrongParameters for a name given twice."""
    found: Record = {}
    for name, value in map(parse_override, texts):
        if name in found:
            raise WrongParameters(f"{name} is given more than once")
        found[name] = value
    return found


def parse_override(text: str) -> tuple[str, object]:
    """Split ``name=value``. A value that fits as it stands (a path, a name) is taken so, another is
    read as JSON, or as a list in YAML; an empty one and ``null`` are None.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise WrongParameters(f"{text!r} is not name=value")
    read: list[object] = [None if value in ("", "null") else value]
    with suppress(ValueError, RecursionError):
        read.append(parse_yaml(value) if value.startswith("[") else json.loads(value))
    return name, next((one for one in read if _fits(name, one)), read[-1])


def _fits(name: str, value: object) -> bool:
    try:
        return bool(_CHECKED.validate_python({name: value}))
    except ValidationError:
        return False
