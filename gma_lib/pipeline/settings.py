"""run.json: settings that decide a result, which 02_export records and the later stages follow."""

from collections.abc import Mapping
from dataclasses import replace
from types import NoneType
from typing import cast, get_args

from gma_lib.network import choose_opset
from gma_lib.pipeline.parameters import (
    SETTINGS,
    Settings,
    WrongParameters,
    check_parameters,
    choose_lookup,
    choose_precision,
)
from gma_lib.runs.files import shorten_path
from gma_lib.runs.records import SCHEMA, Record, read_json, write_json
from gma_lib.runs.run import Run, open_run

# Null is what a version computes that does not know the setting, so its archives can be replayed
_OPTIONAL = [name for name, kind in Settings.__annotations__.items() if NoneType in get_args(kind)]


def make_run(parameters: Mapping[str, object]) -> Run:
    """Return the run that checked parameters name; WrongParameters where none of them does."""
    named: Record = {"run": None, "backend": None, "precision": None} | dict(parameters)
    if not (named["run"] or named["backend"]):
        raise WrongParameters("run is null, which needs a backend: name one of them")
    named["precision"] = choose_precision(named["backend"], named["precision"])
    names = ("outputs", "profile", "run", "batch_size", "backend", "precision")
    return open_run(**{name: named[name] for name in names})


def start_run(given: Mapping[str, object]) -> tuple[Run, Settings]:
    """Check 02_export's parameters, its ``globals()``; return the run and its settings, in which
    precision, lookup and opset are chosen.
    """
    checked = check_parameters(given)
    run = make_run(checked)
    settings: Record = {name: checked[name] for name in SETTINGS}
    settings["precision"] = run.precision
    settings["lookup"] = choose_lookup(run.backend, checked["lookup"])
    settings["opset"] = choose_opset(settings["lookup"], checked["opset"])
    return run, cast(Settings, settings)


def write_settings(run: Run, settings: Settings) -> Record:
    """Write ``run.json``; return it as a record that 02_export's is made from."""
    content = identify_run(run) | settings
    write_json(run.settings_file, content)
    return {"schema": SCHEMA, **content}


def identify_run(run: Run) -> Record:
    """What tells a run from a copy of its folder under another name."""
    return {"profile": run.profile, "run": run.name, "batch_size": run.batch_size}


def read_settings_record(run: Run) -> Record:
    """Read all of ``run.json``, as it was written: without the settings that its version lacks.

    Raises
    ------
    FileNotFoundError, ValueError
        It is missing, damaged, of another version, or of another run: its folder was copied or
        renamed. The message names the notebook to run.
    """
    content = read_json(run.settings_file, made_by="02_export")
    mine = identify_run(run)
    known = {*SETTINGS, *mine, "schema", "provenance"}
    newer = [name for name, value in content.items() if name not in known and value is not None]
    if newer or not content.keys() >= set(SETTINGS).difference(_OPTIONAL):
        raise ValueError(
            f"{shorten_path(run.settings_file)} is of another version: run 02_export again"
        )
    for name, value in mine.items():
        if (other := content.get(name, value)) != value:
            raise ValueError(
                f"{shorten_path(run.settings_file)} is of {name} {other!r}, not {value!r}: its "
                "folder was copied or renamed; run 02_export again"
            )
    return content


def read_settings(run: Run) -> Settings:
    """Read the settings of ``run.json``; raises as ``read_settings_record`` does."""
    content = read_settings_record(run)
    return cast(Settings, {name: content.get(name) for name in SETTINGS})


def find_contradiction(run: Run, parameters: Record) -> str | None:
    """Say which setting of ``run.json`` is not what the parameters of a whole run ask for."""
    recorded = dict(read_settings(run))
    wanted = {name: parameters[name] for name in SETTINGS if name in parameters}
    wanted |= {"precision": run.precision}
    if "lookup" in wanted:
        wanted["lookup"] = choose_lookup(run.backend, wanted["lookup"])
    if "opset" in wanted:
        wanted["opset"] = choose_opset(wanted.get("lookup", recorded["lookup"]), wanted["opset"])
    for name, value in wanted.items():
        if recorded[name] != value:
            return f"{name} is {recorded[name]!r} by now, not {value!r}: another run changed it"
    return None


def open_recorded(given: Mapping[str, object]) -> tuple[Run, Settings]:
    """Return the run that a notebook's parameters name, and the settings that 02_export recorded.

    Parameters
    ----------
    given
        The notebook's ``globals()``. A setting that is None there is as recorded.

    Raises
    ------
    FileNotFoundError, ValueError
        ``run.json`` is missing, damaged or of another version, or contradicts a setting given here.
    """
    given = {name: item for name, item in given.items() if name not in SETTINGS or item is not None}
    checked = check_parameters(given)
    run = make_run(checked)
    settings = read_settings(run)
    for name, recorded in settings.items():
        if checked.get(name, recorded) != recorded:
            raise ValueError(
                f"{name} is {checked[name]!r} here, and {recorded!r} in "
                f"{shorten_path(run.settings_file)}: change it in 02_export and run that again, "
                "or leave it null here"
            )
    return replace(run, backend=settings["backend"], precision=str(settings["precision"])), settings
