"""The guide's table, rebuilt: accuracy and throughput per batch size next to the published ones,
and what differs.

Everything comes from the records that the stages of a run wrote; nothing is measured here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from gma_lib.ascend import describe_kept, read_manifest
from gma_lib.backends import find_backend
from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT
from gma_lib.evaluate import published
from gma_lib.runs import Record, Run
from gma_lib.runs.records import trace_provenance

GUIDE = "the guide, Ascend 310P3"
NOT_PUBLISHED = "not published"
OUT_OF_MEMORY = "out of memory"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class StageRecords:
    """What the stages wrote for one batch size of a run; empty where a stage wrote nothing.

    Attributes
    ----------
    index, export, convert, metrics, perf
        The JSON of 01, 02, 03, 05 and 06.
    """

    run: Run
    index: Record = field(default_factory=dict)
    export: Record = field(default_factory=dict)
    convert: Record = field(default_factory=dict)
    metrics: Record = field(default_factory=dict)
    perf: Record = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        return any(record.get("simulated") for record in (self.convert, self.metrics, self.perf))

    @property
    def has_numbers(self) -> bool:
        return bool(self.metrics or self.perf)

    @property
    def label(self) -> str:
        return self.run.name + (" (SIMULATED)" if self.simulated else "")


def compare_with_guide(found: Iterable[StageRecords]) -> pd.DataFrame:
    """Return a table of the guide's row for every batch size and the runs' rows below it; cells are
    words, because some of them are not numbers.
    """
    found = [records for records in found if records.has_numbers]
    sizes = set(published.GUIDE_PAIRS_PER_SECOND) | {records.run.batch_size for records in found}
    rows = {}
    for size in sorted(sizes):
        rows[f"batch size {size}", GUIDE] = _published_row(size)
        rows |= {
            (f"batch size {size}", records.label): _row(records)
            for records in found
            if records.run.batch_size == size
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    frame.index = pd.MultiIndex.from_tuples(rows)
    measured = any("pairs_per_second_with_transfers" in records.perf for records in found)
    return frame if measured else frame.drop(columns="pairs/s with transfers")


def _published_row(size: int) -> dict[str, str]:
    scored = size == published.GUIDE_ACCURACY_BATCH_SIZE
    rate = published.GUIDE_PAIRS_PER_SECOND.get(size, NOT_PUBLISHED)
    return {
        **{
            f"1px {name}, %": f"{100 * px1:.2f}" if scored else NOT_PUBLISHED
            for name, px1 in published.GUIDE_PX1.items()
        },
        "pairs scored": "1041 of 1041 a pass" if scored else "",
        "pairs/s": OUT_OF_MEMORY if rate is None else str(rate),
        "pairs/s with transfers": NOT_PUBLISHED if rate else "",
    }


def _row(records: StageRecords) -> dict[str, str]:
    scores = {
        name: records.metrics[name] for name in published.GUIDE_PX1 if name in records.metrics
    }
    px1 = {name: score["all"]["px1"] for name, score in scores.items() if score["pairs_scored"]}
    perf = records.perf
    rates = {
        "pairs/s": "pairs_per_second",
        "pairs/s with transfers": "pairs_per_second_with_transfers",
    }
    timed = {column: f"{perf[key]:.3f}" if key in perf else "" for column, key in rates.items()}
    if perf.get("status") == "out_of_memory":
        timed["pairs/s"] = OUT_OF_MEMORY
    counts = (
        f"{name} {score['pairs_scored']} of {score['pairs_inferred']}"
        for name, score in scores.items()
    )
    return {
        **{
            f"1px {name}, %": f"{100 * px1[name]:.2f}" if name in px1 else ""
            for name in published.GUIDE_PX1
        },
        "pairs scored": "; ".join(counts),
        **timed,
    }


def list_differences(found: Iterable[StageRecords]) -> pd.DataFrame:
    """Return a table of what the guide's numbers and each run's were made with; "the same" where
    both agree. One column a run: its first batch size, and those that were made otherwise.
    """
    columns = {GUIDE: published.GUIDE_MADE_WITH}
    for label, group in group_by_settings(found).items():
        made = _made_with(group[0])
        columns[label] = {
            what: "the same" if made[what] == words else made[what]
            for what, words in published.GUIDE_MADE_WITH.items()
        }
    return pd.DataFrame(columns, index=list(published.GUIDE_MADE_WITH))


def group_by_settings(found: Iterable[StageRecords]) -> dict[str, list[StageRecords]]:
    """Group the batch sizes of each run that were made alike; they may differ in the frames that
    were scored and in the number of rounds. A run's name -> all of them, or, where some were made
    otherwise, its name and their batch sizes -> those.
    """
    groups: list[tuple[str, dict[str, str], list[StageRecords]]] = []
    for records in found:
        if not (records.export and records.has_numbers):
            continue
        made = _made_with(records)
        for label, first, members in groups:
            if label == records.label and _agree(first, made):
                members.append(records)
                break
        else:
            groups.append((records.label, made, [records]))
    times = Counter(label for label, *_ in groups)
    return {
        label if times[label] == 1 else f"{label}, {name_sizes(members)}": members
        for label, _, members in groups
    }


def name_sizes(group: Iterable[StageRecords]) -> str:
    """Return ``batch size 1, 4``."""
    return f"batch size {', '.join(str(records.run.batch_size) for records in group)}"


def say_of_whom(told: dict[str, list[StageRecords]]) -> list[str]:
    """Every sentence once, after the names of the runs that it holds for, with their batch sizes
    where another one holds for others.
    """
    several = Counter(name for group in told.values() for name in {one.run.name for one in group})
    found = []
    for sentence, group in told.items():
        names = []
        for name in dict.fromkeys(one.run.name for one in group):
            mine = [one for one in group if one.run.name == name]
            names.append(name if several[name] == 1 else f"{name}, {name_sizes(mine)}")
        found.append(f"{'; '.join(names)}: {sentence}")
    return found


def _agree(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(
        one[what] == other[what] or UNKNOWN in (one[what], other[what])
        for what in set(one) - {"frames", "throughput"}
    )


def _made_with(records: StageRecords) -> dict[str, str]:
    export, convert, perf = records.export, records.convert, records.perf
    weights = export["checkpoint"]
    manifest = (
        read_manifest(records.run.model_folder / "gma.om")
        if records.run.backend == "ascend"
        else None
    )
    at_once = convert.get("at_once", perf.get("at_once", UNKNOWN))
    return {
        "weights": f"{weights['name']}, SHA-256 {weights['sha256'][:12]}",
        "frames": _frames(records),
        "updates": str(export["num_updates"]),
        "graph": f"{export['lookup']} lookup, {_operators(records)}, {_work(records)}",
        "precision": _precision(records, manifest),
        "tools": _tools(records, manifest),
        "hardware": _hardware(records, manifest),
        "computed at once": _count_at_once(at_once),
        "throughput": _throughput(records),
    }


def _count_at_once(at_once: int | str | None) -> str:
    if isinstance(at_once, int):
        return f"{at_once} pair{'s' if at_once > 1 else ''}"
    return at_once or "the whole batch"


def _operators(records: StageRecords) -> str:
    if find_backend(records.run.backend).model_file != "gma.safetensors":
        return f"opset {records.export['opset']}"
    rearranged = records.run.backend == "cuda"
    return "PyTorch's operators" + (", rearranged for a GPU" if rearranged else "")


def _work(records: StageRecords) -> str:
    export, run = records.export, records.run
    if not export["save_work"]:
        return "every layer as published"
    if run.backend == "cuda" and run.precision != "float32" and export["attention"] == "content":
        return "only attention computed again in the updates"
    return "nothing computed twice in the updates"


def _frames(records: StageRecords) -> str:
    scored = {
        name: records.metrics[name]["pairs_scored"]
        for name in published.GUIDE_PX1
        if name in records.metrics
    }
    complete = list(scored.values()) == 2 * [PAIRS_IN_TRAINING_SPLIT]
    description = records.index.get("description", "unknown data set")
    is_sintel = description.startswith(published.GUIDE_DATA)
    if complete and is_sintel and records.index.get("split") == "training":
        found = "by folder layout and number of pairs; contents not checked"
        return f"{published.GUIDE_MADE_WITH['frames']} ({found})"
    counts = ", ".join(f"{number} {name}" for name, number in scored.items())
    return f"{description}; scored: {counts}" if counts else description


def _hardware(records: StageRecords, manifest: Record | None) -> str:
    device = records.perf.get("device") or records.convert.get("device")
    if device is None and manifest:  # memory ran out before anything was loaded
        return f"{manifest['soc']}{' (SIMULATED)' if records.simulated else ''}"
    if device is None:
        return UNKNOWN
    processor = _trace_numbers(records)["machine"]["processor"]
    return f"{processor} ({device})" if "CPU" in device.upper() else device


def _precision(records: StageRecords, manifest: Record | None) -> str:
    if records.run.backend == "ascend" and not manifest:  # memory ran out before it was converted
        return UNKNOWN
    precision = records.convert.get("precision", records.run.precision)
    kept = describe_kept(manifest["options"]["keep_dtype"]) if manifest else ""
    words = f"{precision}, {kept} in float32" if kept else precision
    if records.simulated:
        return f"{words} was asked for; the simulator's internal precision is unknown"
    return words


def _throughput(records: StageRecords) -> str:
    if records.simulated:
        return "not measured: a simulator's number"
    if "pairs_per_second" not in records.perf:
        return "not measured"
    if records.run.backend == "ascend":
        return published.GUIDE_MADE_WITH["throughput"]
    return (
        f"batch size / median time of {records.perf.get('rounds', 'all')} calls; "
        "frames in, flow out, in this machine's memory"
    )


def _tools(records: StageRecords, manifest: Record | None) -> str:
    if manifest:
        return f"CANN {manifest['cann'] or '(version not known)'}, atc, ais_bench"
    if records.run.backend == "ascend":
        return UNKNOWN
    versions = _trace_numbers(records)["versions"]
    return f"{records.run.backend} {versions.get(records.run.backend, '')}".strip()


def _trace_numbers(records: StageRecords) -> Record:
    """Machine and versions of the numbers: of the measurement where there is one, else of the
    scoring. A record that this process has not written yet has none: they are this machine's.
    """
    made = records.perf or records.metrics or records.convert or records.export
    found: Record = made.get("provenance") or trace_provenance()
    return found
