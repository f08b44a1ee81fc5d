"""The index page over all stages, batch sizes and runs of a profile, from the files that the stages
wrote.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import pandas as pd

from gma_lib.evaluate.evaluation import select_passes
from gma_lib.evaluate.guide import (
    StageRecords,
    compare_with_guide,
    group_by_settings,
    list_differences,
    name_sizes,
    say_of_whom,
)
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.evaluate.tables import describe_counts, summarise_scores, tabulate_groups
from gma_lib.perf.summary import find_peak_memory
from gma_lib.pipeline.stages import STAGES, locate_record, locate_stage
from gma_lib.pipeline.stamps import CURRENT, PAGE_ALTERED, list_templates, read_stamp, read_statuses
from gma_lib.report.charts import plot_throughput, plot_timeline
from gma_lib.report.crate import BIBTEX, describe_files, read_enclosed
from gma_lib.report.figures import Picture, encode_figure
from gma_lib.report.pages import fill_template, link_values, table_to_html
from gma_lib.report.private import read_without_folders
from gma_lib.runs.files import hash_file, hash_value, shorten_path, write_atomically, write_text
from gma_lib.runs.records import Record, describe_provenance, read_json, write_json
from gma_lib.runs.run import Run, check_folder_name, list_batch_sizes
from gma_lib.verify.replay import METADATA

SHOWN = ".index.json"  # digests of the page and of the stamps that it was written from
SENT = (".html", ".ipynb", ".json", ".jpg", ".js")
UNVOUCHED = ("altered", "stale")  # what such a stage left is neither shown nor sent
WORDS = {
    "ok": ("✓ done", "ok"),
    "failed": ("✗ failed", "bad"),
    "timeout": ("✗ timed out", "bad"),
    "died": ("✗ kernel died", "bad"),
    "interrupted": ("✗ interrupted", "bad"),
    "out_of_memory": ("– does not fit", "bad"),
    "skipped": ("– skipped", "none"),
    None: ("· not run", "none"),
}
Statuses = dict[str, str | None]  # stage -> status, of one run


def write_index(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>/index.html`` from the files that the stages wrote there.

    Raises FileNotFoundError when nothing has run.
    """
    folder = _find_profile(outputs, profile)
    statuses = {run: read_statuses(run) for run in _find_runs(folder)}
    data = Run(folder.parent, profile, "", "", 1, "")
    index = _result(data, "01_data", read_statuses(data))
    found = [_read_records(run, index, statuses[run]) for run in statuses]
    runs: dict[str, list[StageRecords]] = {}
    for records in found:
        runs.setdefault(records.run.name, []).append(records)
    passes = list(
        dict.fromkeys(name for records in found for name in select_passes(records.metrics))
    )
    passes = passes or ["clean", "final"]
    made_by = " ".join(describe_provenance(made) for made in _list_makers(_list_vouched(folder)))
    alike = group_by_settings(found)
    headline = [_headline(records, passes, statuses[records.run]) for records in found]
    page = fill_template(
        "index.html.j2",
        profile=profile,
        data_line=_describe_data(index),
        lead=_find_lead(folder, found),
        notes=[
            *_list_weights(found),
            *dict.fromkeys(
                note for records in found for note in _list_notes(records, statuses[records.run])
            ),
        ],
        passes=passes,
        headline=headline,
        headline_links=link_values(_tabulate_headline(headline, passes), "at a glance"),
        guide_table=table_to_html(compare_with_guide(found), "Accuracy and speed", words=True),
        differences=table_to_html(list_differences(found), "How they were obtained", words=True),
        verdicts=_list_verdicts(found),
        throughput=_draw_throughput(alike),
        timelines=[*_draw_timelines(statuses)],
        stages=list(STAGES),
        unvouched=any(
            word in (*UNVOUCHED, PAGE_ALTERED)
            for found in statuses.values()
            for word in found.values()
        ),
        runs=[
            {
                "name": name,
                "rows": [_stage_row(folder, one.run, statuses[one.run]) for one in group],
            }
            for name, group in runs.items()
        ],
        tables=[table for group in alike.values() for table in _score_tables(group)],
        bibtex=BIBTEX,
        footer=f"{made_by} Every JSON file next to the notebooks carries versions and hashes.",
    )
    write_text(folder / "index.html", page)
    write_json(folder / SHOWN, _digest_shown(folder))
    return folder / "index.html"


def is_current(outputs: Path, profile: str) -> bool:
    """Whether the index page is as it was written, from the stamps that are there now."""
    folder = Path(outputs) / profile
    try:
        shown = read_json(folder / SHOWN, made_by="gma report")
        return all(shown[name] == digest for name, digest in _digest_shown(folder).items())
    except (OSError, ValueError, KeyError):
        return False


def _digest_shown(folder: Path) -> Record:
    stamps = [*folder.glob("*/.*.json"), *folder.glob("*/bs*/.*.json")]
    digests = {str(path.relative_to(folder)): hash_file(path) for path in sorted(stamps)}
    code = [*Path(__file__).parent.glob("*.py"), *list_templates()]
    made_by = hash_value(sorted(hash_file(path) for path in code))
    return {"page": hash_file(folder / "index.html"), "stamps": digests, "made_by": made_by}


def write_archive(outputs: Path, profile: str) -> Path:
    """Write ``outputs/<profile>.zip``, the report as one file to send: index, pages, executed
    notebooks, numbers, lock and licence; no models, no flow, nothing of a stage that is altered or
    stale, no folder of a user. It is an RO-Crate, and ``gma replay`` computes it again.

    Unpacked anywhere, ``<profile>/index.html`` opens without a network. Raises FileNotFoundError
    when nothing has run.
    """
    folder = _find_profile(outputs, profile)
    archive = folder.with_name(f"{profile}.zip")
    with (
        write_atomically(archive) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as content,
    ):
        files = sorted({write_index(outputs, profile), *_list_vouched(folder)})
        texts = [path for path in files if path.suffix != ".jpg"]
        sent = {path: path.read_bytes() for path in set(files).difference(texts)}
        for path, text in read_without_folders(texts, _find_runs(folder)):
            sent[path] = text.encode()
        named = {path.relative_to(folder.parent).as_posix(): sent[path] for path in files}
        named |= read_enclosed()
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in named.items()}
        for name, data in named.items():
            content.writestr(name, data)
        content.writestr(METADATA, describe_files(digests, profile, _list_makers(files)))
    return archive


def _list_makers(files: Iterable[Path]) -> list[Record]:
    """Provenances of records: the latest of each package, commit, machine and set of versions."""
    found: dict[str, Record] = {}
    for path in (path for path in files if path.suffix == ".json"):
        if made := _read(path).get("provenance"):
            what = [made[name] for name in ("package", "commit", "machine", "versions")]
            if made["created"] >= found.setdefault(key := hash_value(what), made)["created"]:
                found[key] = made
    return sorted(found.values(), key=itemgetter("created"))


def _list_vouched(folder: Path) -> Iterator[Path]:
    """Pages, notebooks, numbers and pictures as their stages left them, and notebooks that
    failed.
    """
    for run in _find_runs(folder):
        for stage, status in read_statuses(run).items():
            place, stamp = locate_stage(stage, run), read_stamp(stage, run)
            if stamp and status not in UNVOUCHED:
                names = {f"{stage}.failed.ipynb", *stamp.products}
                if status == PAGE_ALTERED:
                    names -= {f"{stage}.ipynb", f"{stage}.html"}
                paths = (place / name.removeprefix(f"{stage} ") for name in sorted(names))
                yield from (path for path in paths if path.suffix in SENT and path.is_file())


def _find_profile(outputs: Path, profile: str) -> Path:
    check_folder_name(profile)
    folder = Path(outputs) / profile
    if not [*folder.glob("*/.*.json"), *_find_runs(folder)]:
        raise FileNotFoundError(
            f"{shorten_path(folder)}: nothing of this profile has run. Run gma reproduce first."
        )
    return folder


def _find_runs(folder: Path) -> list[Run]:
    """Every run and batch size that has a stamp, sorted by name, then by size."""
    found = []
    for place in (path for path in folder.iterdir() if path.is_dir()):
        for size in list_batch_sizes(place):
            path = place / f"bs{size}"
            if any((path / f".{stage}.json").is_file() for stage in STAGES):
                known = _read(path / "run.json")
                made_with = known.get("backend", "?"), known.get("precision", "?")
                found.append(Run(folder.parent, folder.name, *made_with, size, place.name))
    return sorted(found, key=lambda run: (run.name, run.batch_size))


def _read_records(run: Run, index: Record, statuses: Statuses) -> StageRecords:
    stages = ("02_export", "03_convert", "05_evaluate", "06_perf")
    return StageRecords(run, index, *(_result(run, stage, statuses) for stage in stages))


def _result(run: Run, stage: str, statuses: Statuses) -> Record:
    """The numbers of a stage; empty unless its results and all before are as they were left."""
    known = statuses[stage] in CURRENT
    return _read(locate_record(stage, run)) if known else {}


def _read(path: Path) -> Record:
    try:
        return read_json(path, made_by="its notebook")
    except (OSError, ValueError):
        return {}


def _describe_data(index: Record) -> str:
    if not index:
        return "No data set: 01_data has not run, or its results were altered."
    pairs = index["pairs"]
    scenes = len({pair["scene"] for pair in pairs})
    truth = sum("flow" in pair["files"] for pair in pairs)
    size = f"{index['width']}x{index['height']} px"
    return (
        f"{index['description']}: {len(pairs)} pairs of {size} in {scenes} scenes, "
        f"{truth} with ground truth."
    )


def _find_lead(folder: Path, found: list[StageRecords]) -> Record | None:
    """The first evaluated run in one picture, and in one sentence where other methods were
    computed too.
    """
    told = [
        (summarise_scores(one.metrics.get("classical", {})), one) for one in found if one.metrics
    ]
    if not told:
        return None
    sentence, records = next((one for one in told if one[0]), told[0])

    def link(name: str) -> str | None:
        path = records.run.folder / name
        return path.relative_to(folder).as_posix() if path.is_file() else None

    return {
        "sentence": sentence,
        "batch_size": records.run.batch_size,
        "run": records.label,
        "picture": link("overview.jpg"),
        "narrow": link("overview-narrow.jpg"),
        "viewer": link("viewer.html"),
    }


def _list_weights(found: list[StageRecords]) -> list[str]:
    """What is known of the weights; of whose, where there are several."""
    notes: dict[str, list[StageRecords]] = {}
    for records in (one for one in found if one.export):
        notes.setdefault(records.export["checkpoint"]["note"], []).append(records)
    return say_of_whom(notes) if len(notes) > 1 else list(notes)


def _list_notes(records: StageRecords, statuses: Statuses) -> list[str]:
    """What a reader must know: what was left out, what was doubtful, what was simulated."""
    inferred = _result(records.run, "04_infer", statuses)
    name, notes = f"{records.run.name}, {name_sizes([records])}", []
    if inferred.get("subset"):
        notes.append(f"{name}: {inferred['subset']}")
    if caution := records.perf.get("caution"):
        notes.append(f"Caution, times of {name}: {caution}.")
    if records.simulated or inferred.get("simulated"):
        notes.append(f"SIMULATED: {records.run.name} ran on a simulator, not on the device.")
    return notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _headline(records: StageRecords, passes: list[str], statuses: Statuses) -> Record:
    perf, scores = records.perf, select_passes(records.metrics)
    everything = [scores.get(name, {}).get("all", {}) for name in passes]
    compared = records.convert.get("compared", {}).values()  # also the parts, which 04 may run
    status, kind = _overall(statuses)
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
        "median": f"{perf['median_s']:#.3g}" if "median_s" in perf else "",
        "memory": _number(peak / 1e9 if (peak := find_peak_memory(perf)) else None, 2),
        "perf_reason": perf.get("reason") or "",
        "caution": bool(perf.get("caution")),
        "deviation": " / ".join(
            f"{max(found[name] for found in compared):.1e}" for name in ("mean", "max") if compared
        ),
    }


def _tabulate_headline(headline: list[Record], passes: list[str]) -> pd.DataFrame:
    """The table at a glance, a column for each number."""
    if not headline:  # every run ended before its first record
        return pd.DataFrame()
    table = pd.DataFrame(headline).drop(columns=["kind", "accuracy", "scored"])
    accuracy = [f"{what} {name}" for what in ("EPE, px,", "1px, %,") for name in passes]
    for names, values in ((accuracy, "accuracy"), ([f"scored {one}" for one in passes], "scored")):
        for number, name in enumerate(names):
            table[name] = [row[values][number] for row in headline]
    return table.set_index(["run", "batch_size"])


def _overall(statuses: Statuses) -> tuple[str, str]:
    """One word for all stages of a batch size, and its kind: the first that did not end well, or
    how many are done.
    """
    for stage in statuses:
        word, kind = _describe_status(stage, statuses)
        if kind == "bad":
            return word if word.startswith("!") else f"{word}: {stage}", kind
    done = sum(status == "ok" for status in statuses.values())
    if done == len(statuses):
        return "✓ all stages", "ok"
    return f"· {done} of {len(statuses)} stages", "none"


def _describe_status(stage: str, statuses: Statuses) -> tuple[str, str]:
    """The word for how a stage ended, and its kind; for an altered one, the notebook to run."""
    status = statuses[stage]
    if status == PAGE_ALTERED:
        return f"! {status}: run {stage} again", "bad"
    if status in UNVOUCHED:
        fine = ("ok", "out_of_memory", PAGE_ALTERED)
        first = next(name for name in (*STAGES[stage].reads, stage) if statuses[name] not in fine)
        return f"! {status}: run {first} again", "bad"
    return WORDS.get(status, (str(status), "bad"))


def _list_verdicts(found: list[StageRecords]) -> list[str]:
    verdicts: dict[str, list[StageRecords]] = {}
    for records in found:
        if records.metrics.get("verdict"):
            verdicts.setdefault(records.metrics["verdict"], []).append(records)
    return say_of_whom(verdicts)


def _draw_throughput(alike: dict[str, list[StageRecords]]) -> dict[str, str] | None:
    """A line for the batch sizes of a run that were made alike."""
    rates: dict[str, dict[int, float | None]] = {}
    memory_gb: dict[str, dict[int, float]] = {}
    doubtful: dict[str, list[int]] = {}
    for label, group in alike.items():
        sizes = {records.run.batch_size: records.perf for records in group if records.perf}
        rates[label] = {size: perf.get("pairs_per_second") for size, perf in sizes.items()}
        doubtful[label] = [size for size, perf in sizes.items() if perf.get("caution")]
        memory_gb[label] = {
            size: peak / 1e9
            for size, perf in sizes.items()
            if perf["status"] == "ok" and (peak := find_peak_memory(perf))
        }
    if not any(rate is not None for sizes in rates.values() for rate in sizes.values()):
        return None
    published = {size: rate for size, rate in GUIDE_PAIRS_PER_SECOND.items() if rate}
    return _embed(plot_throughput(rates, memory_gb, published, doubtful))


def _draw_timelines(statuses: dict[Run, Statuses]) -> Iterator[dict[str, str]]:
    """Of each run that several workers computed: who computed which shard, and when."""
    for run, ended in statuses.items():
        summary = _result(run, "04_infer", ended).get("summary", {})
        if summary.get("workers"):
            chart = _embed(plot_timeline(summary["shards"], summary["seconds"]))
            yield chart | {"title": run.title}


def _embed(picture: Picture) -> dict[str, str]:
    """A chart for the template."""
    figure, alt = picture
    media_type, data = encode_figure(figure)
    return {"type": media_type, "data": data, "alt": alt}


def _stage_row(folder: Path, run: Run, statuses: Statuses) -> Record:
    cells = [_stage_cell(folder, stage, run, statuses) for stage in STAGES]
    return {"batch_size": run.batch_size, "cells": cells}


def _stage_cell(folder: Path, stage: str, run: Run, statuses: Statuses) -> Record:
    stamp = read_stamp(stage, run)
    place = locate_stage(stage, run)
    word, kind = _describe_status(stage, statuses)

    def link(name: str, hidden: tuple[str, ...] = (*UNVOUCHED, PAGE_ALTERED)) -> str | None:
        shown = statuses[stage] not in hidden and (place / name).is_file()
        return os.path.relpath(place / name, folder) if shown else None

    return {
        "label": f"{stage}, {run.title}",
        "word": word,
        "kind": kind,
        "reason": stamp.reason if stamp and kind != "ok" else "",
        "seconds": f"{stamp.seconds:.0f} s" if stamp and stamp.seconds else "",
        "html": link(f"{stage}.html"),
        "record": link(STAGES[stage].products[0], UNVOUCHED),
        "notebook": link(f"{stage}.ipynb") or link(f"{stage}.failed.ipynb"),
    }


def _score_tables(group: list[StageRecords]) -> list[dict[str, str]]:
    """Scores by group of pixels, of the first of batch sizes that were made alike; 05 has checked
    that all agree.
    """
    for records in group:
        if scores := select_passes(records.metrics):
            html = table_to_html(tabulate_groups(scores), number="{:.2f}")
            title = f"Scores by group of pixels: {records.run.title}"
            counts = describe_counts(scores)
            return [{"title": title, "counts": counts, "html": html}]
    return []
