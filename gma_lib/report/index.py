"""The index page over all stages, batch sizes and runs of a profile, from whatever the stages have
left.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import click
import jinja2
import pandas as pd

from gma_lib.evaluate import guide
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.evaluate.tables import describe_counts, tabulate_groups
from gma_lib.perf.timing import peak_memory_bytes
from gma_lib.pipeline import runner as pipeline
from gma_lib.report.charts import plot_throughput
from gma_lib.report.figures import encode_figure
from gma_lib.report.pages import TEMPLATES, add_header_scopes
from gma_lib.runs.files import PROJECT, shorten_path, write_atomically
from gma_lib.runs.progress import show_messages
from gma_lib.runs.records import describe_provenance
from gma_lib.runs.run import Run

SENT = (".html", ".ipynb", ".json")
WORDS = {
    "ok": ("✓ done", "ok"),
    "failed": ("✗ failed", "bad"),
    "timeout": ("✗ timed out", "bad"),
    "died": ("✗ kernel died", "bad"),
    "interrupted": ("✗ interrupted", "bad"),
    "out_of_memory": ("– does not fit", "bad"),
    "skipped": ("– skipped", "none"),
    "stale": ("! stale: an earlier stage has run since", "bad"),
    None: ("· not run", "none"),
}


def write_index(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>/index.html`` from whatever the stages have left there."""
    folder = Path(outputs) / profile
    found = _columns(folder)
    runs = {
        name: [run for run in found if run.name == name]
        for name in dict.fromkeys(run.name for run in found)
    }
    metrics = {run: _result(run, "05_evaluate") for run in found}
    passes = list(
        dict.fromkeys(pass_name for content in metrics.values() for pass_name in _passes(content))
    ) or ["clean", "final"]
    page = _template().render(
        profile=profile,
        data_line=_data_line(_json(folder / "data" / "index.json")),
        notes=list(dict.fromkeys(note for run in found for note in _notes(run))),
        passes=passes,
        headline=[_headline(run, metrics[run], passes) for run in found],
        **_beside_the_guide(folder, found, metrics),
        throughput=_throughput(runs),
        stages=list(pipeline.STAGES),
        runs=[
            {"name": name, "rows": [_stage_row(folder, run) for run in group]}
            for name, group in runs.items()
        ],
        tables=_tables(metrics),
        footer=_footer(),
    )
    with write_atomically(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "index.html"


def write_archive(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>.zip``, the report as one file to send: index, pages, executed
    notebooks and numbers; no models, no flow.

    Unpacked anywhere, ``<profile>/index.html`` opens without a network. Raises FileNotFoundError
    where nothing has run.
    """
    folder = Path(outputs) / profile
    if not _columns(folder):
        raise FileNotFoundError(
            f"{shorten_path(folder)}: nothing of this profile has run, so there is nothing to send; make reproduce first"
        )
    archive = folder.with_name(f"{profile}.zip")
    with (
        write_atomically(archive) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as content,
    ):
        for path in sorted(
            path
            for path in folder.rglob("*")
            if path.suffix in SENT and not path.name.startswith(".")
        ):
            content.write(path, path.relative_to(folder.parent))
    return archive


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("index.html.j2")


def _columns(folder: Path) -> list[Run]:
    """Every run and batch size that has left a stamp, sorted by name, then by size."""
    found = []
    for path in sorted(folder.glob("*/bs*")):
        stamps: list[dict[str, Any]] = [
            stamp for stage in pipeline.STAGES if (stamp := _json(path / f".{stage}.json"))
        ]
        size = path.name.removeprefix("bs")
        if stamps and size.isdigit():
            known: dict[str, Any] = next(
                (stamp["parameters"] for stamp in stamps if stamp["parameters"]), {}
            )
            found.append(
                Run(
                    folder.parent,
                    folder.name,
                    known.get("backend", "?"),
                    known.get("precision", "?"),
                    int(size),
                    path.parent.name,
                )
            )
    return sorted(found, key=lambda run: (run.name, run.batch_size))


def _result(run: Run, stage: str) -> dict[str, Any]:
    """The numbers that a stage left, empty unless it ended well and nothing before it has changed
    since.
    """
    if pipeline.current_status(stage, run) != "ok":
        return {}
    return _json(pipeline.stage_folder(stage, run) / pipeline.PRODUCTS[stage][0])


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _passes(metrics: dict) -> dict[str, dict]:
    """The passes of a ``metrics.json``: whatever has been scored in it."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, dict) and "pairs_scored" in value
    }


def _data_line(index: dict) -> str:
    if not index:
        return "No data set yet: 01_data has not run."
    pairs = index["pairs"]
    scenes = len({pair["scene"] for pair in pairs})
    truth = sum("flow" in pair["files"] for pair in pairs)
    return f"{index['description']}: {len(pairs)} pairs of {index['height']}x{index['width']} in {scenes} scenes, {truth} with ground truth."


def _notes(run: Run) -> list[str]:
    """Sentences that must stand beside the numbers: what the weights are, what was left out, what a
    stand-in produced.
    """
    export, convert, infer, perf = (
        _result(run, stage) for stage in ("02_export", "03_convert", "04_infer", "06_perf")
    )
    notes = [export["checkpoint"]["note"]] if export else []
    if infer.get("subset"):
        notes.append(f"Batch size {run.batch_size}: {infer['subset']}")
    if any(result.get("simulated") for result in (convert, infer, perf)):
        notes.append(f"SIMULATED: what {run.name} shows was produced by a stand-in for the device.")
    return notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _headline(run: Run, metrics: dict, passes: list[str]) -> dict[str, Any]:
    perf, converted = _result(run, "06_perf"), _result(run, "03_convert")
    scores = _passes(metrics)
    everything = [scores.get(pass_name, {}).get("all", {}) for pass_name in passes]
    deviation = converted.get("deviation") or {}
    status, kind = _overall(run)
    return {
        "run": run.name
        + (" (SIMULATED)" if perf.get("simulated") or converted.get("simulated") else ""),
        "batch_size": run.batch_size,
        "status": status,
        "kind": kind,
        "accuracy": [_number(pixels.get("epe"), 3) for pixels in everything]
        + [_percent(pixels.get("px1")) for pixels in everything],
        "scored": [
            f"{scores[name]['pairs_scored']}/{scores[name]['pairs_inferred']}"
            if name in scores
            else ""
            for name in passes
        ],
        "pairs_per_second": _number(perf.get("pairs_per_second"), 3),
        "median": _number(perf.get("median_s"), 2),
        "memory": _number(peak / 1e9 if (peak := peak_memory_bytes(perf)) else None, 2),
        "perf_reason": perf.get("reason") or "",
        "deviation": f"{deviation['mean']:.1e} / {deviation['max']:.1e}" if deviation else "",
    }


def _overall(run: Run) -> tuple[str, str]:
    """One word for all stages of a batch size, and its kind: the first that did not end well, or
    how many are done.
    """
    found = {stage: pipeline.current_status(stage, run) for stage in pipeline.STAGES}
    for stage, status in found.items():
        word, kind = WORDS.get(status, (str(status), "bad"))
        if kind == "bad":
            return f"{word}: {stage}" if status != "stale" else f"! stale: {stage}", kind
    done = sum(status == "ok" for status in found.values())
    return (
        ("✓ all stages", "ok")
        if done == len(found)
        else (f"· {done} of {len(found)} stages", "none")
    )


def _beside_the_guide(folder: Path, runs: list[Run], metrics: dict[Run, dict]) -> dict[str, Any]:
    """The guide's table with the runs' rows among its own, what differs, and the verdicts, each
    said once.
    """
    index = _json(folder / "data" / "index.json")
    found = [
        guide.StageRecords(
            run,
            index,
            _result(run, "02_export"),
            _result(run, "03_convert"),
            metrics[run],
            _result(run, "06_perf"),
        )
        for run in runs
    ]
    said: dict[str, dict[str, None]] = {}  # verdict -> the runs that it holds for, in order
    for records in found:
        if records.metrics.get("verdict"):
            said.setdefault(records.metrics["verdict"], {})[records.run.name] = None
    return {
        "guide_table": _words_table(guide.compare_with_guide(found)),
        "differences": _words_table(guide.list_differences(found)),
        "verdicts": [f"{', '.join(names)}: {verdict}" for verdict, names in said.items()],
    }


def _words_table(table: pd.DataFrame) -> str:
    return add_header_scopes(table.to_html(border=0, classes="words"))


def _throughput(runs: dict[str, list[Run]]) -> dict[str, str] | None:
    rates: dict[str, dict[int, float | None]] = {}
    memory_gb: dict[str, dict[int, float]] = {}
    for name, group in runs.items():
        sizes = {run.batch_size: perf for run in group if (perf := _result(run, "06_perf"))}
        simulated = any(perf["simulated"] for perf in sizes.values())
        label = name + (" (SIMULATED)" if simulated else "")
        timed = {size: perf for size, perf in sizes.items() if perf["status"] == "ok"}
        rates[label] = {
            size: perf["pairs_per_second"] if size in timed else None
            for size, perf in sizes.items()
        }
        memory_gb[label] = {
            size: peak / 1e9 for size, perf in timed.items() if (peak := peak_memory_bytes(perf))
        }
    if not any(rate is not None for sizes in rates.values() for rate in sizes.values()):
        return None
    published = {size: rate for size, rate in GUIDE_PAIRS_PER_SECOND.items() if rate}
    figure, alt = plot_throughput(rates, memory_gb, published)
    media_type, data = encode_figure(figure)
    return {"type": media_type, "data": data, "alt": alt}


def _stage_row(folder: Path, run: Run) -> dict[str, Any]:
    return {
        "batch_size": run.batch_size,
        "cells": [_stage_cell(folder, stage, run) for stage in pipeline.STAGES],
    }


def _stage_cell(folder: Path, stage: str, run: Run) -> dict[str, Any]:
    stamp = pipeline.read_stamp(stage, run)
    place = pipeline.stage_folder(stage, run)
    status = pipeline.current_status(stage, run)
    word, kind = WORDS.get(status, (str(status), "bad"))

    def link(name: str) -> str | None:
        return os.path.relpath(place / name, folder) if (place / name).is_file() else None

    return {
        "word": word,
        "kind": kind,
        "reason": stamp["reason"] if stamp and kind != "ok" else "",
        "seconds": f"{stamp['seconds']:.0f} s" if stamp and stamp["seconds"] else "",
        "html": link(f"{stage}.html"),
        "notebook": link(f"{stage}.ipynb") or link(f"{stage}.failed.ipynb"),
    }


def _tables(metrics: dict[Run, dict]) -> list[dict[str, str]]:
    """Scores by group of pixels, of the first batch size of every run; all batch sizes agree, as 05
    has checked.
    """
    shown_runs: dict[str, tuple[Run, dict]] = {}
    for run, content in metrics.items():
        if _passes(content):
            shown_runs.setdefault(run.name, (run, content))
    if not shown_runs:
        return []
    tables = []
    for name, (run, content) in shown_runs.items():
        scores = _passes(content)
        html = tabulate_groups(scores).to_html(
            float_format="{:.2f}".format,
            formatters={"pixels": "{:,.0f}".format},
            na_rep="",
            border=0,
        )
        html = add_header_scopes(html)
        tables.append(
            {
                "title": f"Scores by group of pixels: {name}, batch size {run.batch_size}",
                "counts": describe_counts(scores),
                "html": html,
            }
        )
    return tables


def _footer() -> str:
    return f"{describe_provenance()} Every JSON file beside the notebooks carries versions and hashes."


@click.command()
@click.option("--profile", default="demo", show_default=True)
@click.option("--outputs", default="outputs", show_default=True, help="Relative to the project.")
@click.option("--archive", is_flag=True, help="Also write the whole report as one zip file.")
def main(profile: str, outputs: str, archive: bool) -> None:
    """Write the index page of a profile and print where it lies."""
    show_messages()
    print(f"report: {shorten_path(write_index(PROJECT / outputs, profile))}")
    if archive:
        try:
            file = write_archive(PROJECT / outputs, profile)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        print(f"to send: {shorten_path(file)} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
