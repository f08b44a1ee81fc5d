"""The index page over all stages, batch sizes and runs of a profile, from the files that the stages
wrote.
"""

import json
import os
import zipfile
from pathlib import Path

import click
import jinja2

from gma_lib.evaluate.guide import StageRecords, compare_with_guide, list_differences
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.evaluate.tables import describe_counts, tabulate_groups
from gma_lib.perf.results import find_peak_memory
from gma_lib.pipeline.stages import STAGES, locate_record, locate_stage
from gma_lib.pipeline.stamps import read_stamp, read_status
from gma_lib.report.charts import plot_throughput
from gma_lib.report.figures import encode_figure
from gma_lib.report.pages import TEMPLATES, table_to_html
from gma_lib.runs.files import PROJECT, shorten_path, write_atomically
from gma_lib.runs.progress import show_messages
from gma_lib.runs.records import Record, describe_provenance
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
    "altered": ("! altered: run it again", "bad"),
    "stale": ("! stale: an earlier stage has run since", "bad"),
    None: ("· not run", "none"),
}


def write_index(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>/index.html`` from the files that the stages wrote there."""
    folder = Path(outputs) / profile
    index = _read(folder / "data" / "index.json")
    found = [_read_records(run, index) for run in _find_runs(folder)]
    runs: dict[str, list[StageRecords]] = {}
    for records in found:
        runs.setdefault(records.run.name, []).append(records)
    passes = list(dict.fromkeys(name for records in found for name in _passes(records.metrics)))
    passes = passes or ["clean", "final"]
    provenance = describe_provenance()
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = pages.get_template("index.html.j2").render(
        profile=profile,
        data_line=_describe_data(index),
        notes=list(dict.fromkeys(note for records in found for note in _list_notes(records))),
        passes=passes,
        headline=[_headline(records, passes) for records in found],
        guide_table=table_to_html(compare_with_guide(found), words=True),
        differences=table_to_html(list_differences(found), words=True),
        verdicts=_list_verdicts(found),
        throughput=_draw_throughput(runs),
        stages=list(STAGES),
        runs=[
            {"name": name, "rows": [_stage_row(folder, records.run) for records in group]}
            for name, group in runs.items()
        ],
        tables=[table for group in runs.values() for table in _score_tables(group)],
        footer=f"{provenance} Every JSON file next to the notebooks carries versions and hashes.",
    )
    with write_atomically(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "index.html"


def write_archive(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>.zip``, the report as one file to send: index, pages, executed
    notebooks and numbers; no models, no flow.

    Unpacked anywhere, ``<profile>/index.html`` opens without a network. Raises FileNotFoundError
    when nothing has run.
    """
    folder = Path(outputs) / profile
    if not _find_runs(folder):
        raise FileNotFoundError(
            f"{shorten_path(folder)}: nothing of this profile has run. Run make reproduce first."
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


def _find_runs(folder: Path) -> list[Run]:
    """Every run and batch size that has a stamp, sorted by name, then by size."""
    found = []
    for path in folder.glob("*/bs*"):
        stamps = [stamp for stage in STAGES if (stamp := _read(path / f".{stage}.json"))]
        size = path.name.removeprefix("bs")
        if stamps and size.isdigit():
            known: Record = next(
                (stamp["parameters"] for stamp in stamps if stamp["parameters"]), {}
            )
            made_with = known.get("backend", "?"), known.get("precision", "?")
            found.append(Run(folder.parent, folder.name, *made_with, int(size), path.parent.name))
    return sorted(found, key=lambda run: (run.name, run.batch_size))


def _read_records(run: Run, index: Record) -> StageRecords:
    stages = ("02_export", "03_convert", "05_evaluate", "06_perf")
    return StageRecords(run, index, *(_result(run, stage) for stage in stages))


def _result(run: Run, stage: str) -> Record:
    """The numbers of a stage; empty unless it ended well and no earlier stage has run since."""
    if read_status(stage, run) != "ok":
        return {}
    return _read(locate_record(stage, run))


def _read(path: Path) -> Record:
    try:
        content: Record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _passes(metrics: Record) -> dict[str, Record]:
    """The scored passes of a ``metrics.json``."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, dict) and "pairs_scored" in value
    }


def _describe_data(index: Record) -> str:
    if not index:
        return "No data set yet: 01_data has not run."
    pairs = index["pairs"]
    scenes = len({pair["scene"] for pair in pairs})
    truth = sum("flow" in pair["files"] for pair in pairs)
    size = f"{index['height']}x{index['width']}"
    return (
        f"{index['description']}: {len(pairs)} pairs of {size} in {scenes} scenes, "
        f"{truth} with ground truth."
    )


def _list_notes(records: StageRecords) -> list[str]:
    """What a reader must know: the weights, what was left out, what was simulated."""
    run, inferred = records.run, _result(records.run, "04_infer")
    notes = [records.export["checkpoint"]["note"]] if records.export else []
    if inferred.get("subset"):
        notes.append(f"Batch size {run.batch_size}: {inferred['subset']}")
    if records.simulated or inferred.get("simulated"):
        notes.append(f"SIMULATED: {run.name} ran on a simulator, not on the device.")
    return notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _headline(records: StageRecords, passes: list[str]) -> Record:
    perf, scores = records.perf, _passes(records.metrics)
    everything = [scores.get(name, {}).get("all", {}) for name in passes]
    deviation = records.convert.get("deviation") or {}
    status, kind = _overall(records.run)
    return {
        "run": records.label,
        "batch_size": records.run.batch_size,
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
        "memory": _number(peak / 1e9 if (peak := find_peak_memory(perf)) else None, 2),
        "perf_reason": perf.get("reason") or "",
        "deviation": f"{deviation['mean']:.1e} / {deviation['max']:.1e}" if deviation else "",
    }


def _overall(run: Run) -> tuple[str, str]:
    """One word for all stages of a batch size, and its kind: the first that did not end well, or
    how many are done.
    """
    found = {stage: read_status(stage, run) for stage in STAGES}
    for stage, status in found.items():
        word, kind = WORDS.get(status, (str(status), "bad"))
        if kind == "bad":
            return f"{word}: {stage}" if status != "stale" else f"! stale: {stage}", kind
    done = sum(status == "ok" for status in found.values())
    if done == len(found):
        return "✓ all stages", "ok"
    return f"· {done} of {len(found)} stages", "none"


def _list_verdicts(found: list[StageRecords]) -> list[str]:
    """Every verdict once, after the names of the runs that it holds for."""
    names: dict[str, dict[str, None]] = {}
    for records in found:
        if records.metrics.get("verdict"):
            names.setdefault(records.metrics["verdict"], {})[records.run.name] = None
    return [f"{', '.join(runs)}: {verdict}" for verdict, runs in names.items()]


def _draw_throughput(runs: dict[str, list[StageRecords]]) -> dict[str, str] | None:
    rates: dict[str, dict[int, float | None]] = {}
    memory_gb: dict[str, dict[int, float]] = {}
    for name, group in runs.items():
        sizes = {records.run.batch_size: records.perf for records in group if records.perf}
        simulated = any(perf["simulated"] for perf in sizes.values())
        label = name + (" (SIMULATED)" if simulated else "")
        rates[label] = {size: perf.get("pairs_per_second") for size, perf in sizes.items()}
        memory_gb[label] = {
            size: peak / 1e9
            for size, perf in sizes.items()
            if perf["status"] == "ok" and (peak := find_peak_memory(perf))
        }
    if not any(rate is not None for sizes in rates.values() for rate in sizes.values()):
        return None
    published = {size: rate for size, rate in GUIDE_PAIRS_PER_SECOND.items() if rate}
    figure, alt = plot_throughput(rates, memory_gb, published)
    media_type, data = encode_figure(figure)
    return {"type": media_type, "data": data, "alt": alt}


def _stage_row(folder: Path, run: Run) -> Record:
    cells = [_stage_cell(folder, stage, run) for stage in STAGES]
    return {"batch_size": run.batch_size, "cells": cells}


def _stage_cell(folder: Path, stage: str, run: Run) -> Record:
    stamp = read_stamp(stage, run)
    place = locate_stage(stage, run)
    status = read_status(stage, run)
    word, kind = WORDS.get(status, (str(status), "bad"))

    def link(name: str) -> str | None:
        return os.path.relpath(place / name, folder) if (place / name).is_file() else None

    return {
        "word": word,
        "kind": kind,
        "reason": stamp.reason if stamp and kind != "ok" else "",
        "seconds": f"{stamp.seconds:.0f} s" if stamp and stamp.seconds else "",
        "html": link(f"{stage}.html"),
        "notebook": link(f"{stage}.ipynb") or link(f"{stage}.failed.ipynb"),
    }


def _score_tables(group: list[StageRecords]) -> list[dict[str, str]]:
    """Scores by group of pixels, of a run's first batch size; 05 has checked that all agree."""
    for records in group:
        if scores := _passes(records.metrics):
            run = records.run
            html = table_to_html(tabulate_groups(scores), number="{:.2f}")
            title = f"Scores by group of pixels: {run.name}, batch size {run.batch_size}"
            counts = describe_counts(scores)
            return [{"title": title, "counts": counts, "html": html}]
    return []


@click.command()
@click.option("--profile", default="demo", show_default=True)
@click.option("--outputs", default="outputs", show_default=True, help="Relative to the project.")
@click.option("--archive", is_flag=True, help="Also write the whole report as one zip file.")
def main(profile: str, outputs: str, archive: bool) -> None:
    """Write the index page of a profile and print its path."""
    show_messages()
    click.echo(f"report: {shorten_path(write_index(PROJECT / outputs, profile))}")
    if archive:
        try:
            file = write_archive(PROJECT / outputs, profile)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"to send: {shorten_path(file)} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
