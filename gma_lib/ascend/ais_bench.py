"""``ais_bench``: runs an ``.om`` over folders of ``.bin`` files, in a separate process. Every
result is checked.

The tool exists in two generations that both call themselves 0.0.2; they differ in file names,
summaries and what they refuse. It pairs the files of its two input folders by position alone and
never cleans its output folder, so both are looked after here.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from gma_lib.ascend.errors import (
    AIS_CODE,
    EXECUTION_FAILED,
    OUT_OF_MEMORY,
    explain_ais_error,
    find_line,
)
from gma_lib.ascend.tool import Watch, run_tool
from gma_lib.data.guide_tensors import read_tensor
from gma_lib.runs import DoesNotFit, Track, pass_silently, read_whole, reading
from gma_lib.runs.leftovers import temporary_folder

LOOP, WARMUP = 100, 5  # calls on zeros that are timed, as in the guide, and calls before them
TIMEOUT_S = 36000  # a run that takes longer is stopped


class AisBenchError(RuntimeError):
    """A run of ais_bench that gave no result; the message says why and what to do."""


@dataclass(frozen=True)
class AisBench:
    """How to run the tool.

    Attributes
    ----------
    python
        The interpreter that has it.
    device
        Logic ID of the chip.
    environment
        Environment of the process; this one's when None.
    """

    python: str = "python3"
    device: int = 0
    environment: Mapping[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Timing:
    """What the tool measured, milliseconds per call.

    Attributes
    ----------
    compute_ms
        Time of every call after the warm-up.
    h2d_ms, d2h_ms
        Time to the card and back that one call takes, all of its inputs and outputs; not part of
        the tool's throughput.
    throughput
        As the tool defines it: 1000 x batch size / mean compute time. Transfers and files are not
        in it.
    simulated
        Whether a stand-in for the tool wrote it.
    """

    compute_ms: list[float]
    h2d_ms: float
    d2h_ms: float
    throughput: float
    simulated: bool


def build_ais_command(tool: AisBench, om: Path, **flags: object) -> list[str]:
    """Return the command line, argument by argument; it is run without a shell."""
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    about = ["--model", str(om), "--device", str(tool.device)]
    return [tool.python, "-m", "ais_bench", *about, *given]


def infer_folders(
    tool: AisBench,
    om: Path,
    folders: list[Path],
    output: Path,
    *,
    batch_size: int,
    output_shape: tuple[int, int, int],
    input_bytes: int,
    track: Track = pass_silently,
) -> tuple[dict[str, Path], Timing]:
    """Run the model over folders of files, one folder per input, and return stem -> output file of
    every sample.

    Parameters
    ----------
    output
        Folder for the results; must not exist or be empty, because the tool would leave older files
        among the new ones.
    batch_size
        Only what the tool's throughput is computed with; the files that make a batch follow from
        the sizes.
    output_shape
        (2, H, W), float32, of one sample.
    input_bytes
        Size of the file of one sample.
    track
        Counts the outputs as they appear.

    Raises
    ------
    ValueError
        When the folders disagree, before anything is started.
    AisBenchError, DoesNotFit
        When exit code, summary, number, sizes and values of the outputs do not all say that it
        worked.
    """
    stems = check_folders(folders, input_bytes)
    if output.exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} is not empty: the tool would leave what is there among the new results; "
            "delete it first"
        )
    for path in (*folders, output):
        check_path(path, ends="")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = build_ais_command(
        tool,
        check_path(om, ends=".om"),
        input=",".join(map(str, folders)),
        output=output.parent,
        output_dirname=output.name,
        outfmt="BIN",
        batchsize=batch_size,
    )
    started = time.time()
    _run(tool, command, batch_size, partial(_show_outputs, output, len(stems), track))
    timing = read_summary(find_summary(output, newer_than=started))
    return collect_outputs(output, stems, output_shape), timing


def time_on_zeros(
    tool: AisBench, om: Path, *, batch_size: int, watch: Watch | None = None
) -> Timing:
    """Time pure inference on zeros, as the guide measures.

    ``watch`` is given the seconds so far while the tool works, which says nothing until it ends
    (``gma_lib.runs.progress.log_elapsed``).
    """
    # without --output the tool writes no summary
    with temporary_folder() as folder:
        output = folder / "pure"
        command = build_ais_command(
            tool,
            check_path(om, ends=".om"),
            loop=LOOP,
            warmup_count=WARMUP,
            batchsize=batch_size,
            output=folder,
            output_dirname=output.name,
        )
        started = time.time()
        _run(tool, command, batch_size, watch)
        return read_loop(output, newer_than=started, batch_size=batch_size)


def read_loop(output: Path, *, newer_than: float, batch_size: int) -> Timing:
    """Read the summary of pure inference; AisBenchError where it contradicts itself."""
    timing = read_summary(find_summary(output, newer_than=newer_than), loop=LOOP)
    mean = 1000 * batch_size / timing.throughput if timing.throughput > 0 else 0.0
    if not np.isclose(np.mean(timing.compute_ms), mean, rtol=0.01):
        raise AisBenchError(
            f"the summary's times have a mean of {np.mean(timing.compute_ms):.4g} ms, and its "
            f"throughput says {mean:.4g} ms: not used"
        )
    if len(timing.compute_ms) != LOOP:
        raise AisBenchError(
            f"the summary holds {len(timing.compute_ms)} times where {LOOP} calls were asked for"
        )
    return timing


# --- before the run -------------------------------------------------------------------------------


def check_folders(folders: list[Path], input_bytes: int) -> list[str]:
    """Stems of the samples, sorted; ValueError unless every folder holds the same names, each of
    the right size.
    """
    names = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder of input files")
        files = sorted(
            path for path in Path(folder).iterdir() if path.suffix.lower() in (".bin", ".npy")
        )
        if not files:
            raise ValueError(f"{folder} holds no .bin file")
        for file in files:
            if file.suffix != ".bin" or "." in file.stem:
                raise ValueError(
                    f"{file}: expected <name>.bin with one dot; the tool cuts names at the first "
                    "dot, so results would overwrite each other"
                )
            if file.is_symlink():
                raise ValueError(f"{file} is a link, which the newer tool refuses: copy the file")
            if file.stat().st_size != input_bytes:
                raise ValueError(
                    f"{file} has {file.stat().st_size} bytes where one sample has {input_bytes}; "
                    "was it cut short?"
                )
        names.append({file.name for file in files})
    for folder, other in zip(folders[1:], names[1:], strict=True):
        differing = sorted(names[0] ^ other)
        if differing:
            raise ValueError(
                f"{folders[0]} and {folder} disagree ({len(differing)} names, such as "
                f"{differing[0]}): the tool pairs files by "
                f"position, so every later pair would be wrong"
            )
    return sorted(name.removesuffix(".bin") for name in names[0])


def check_path(path: Path, *, ends: str) -> Path:
    """The absolute path, or ValueError for one that a generation of the tool rejects."""
    absolute = Path(path).absolute()
    if absolute.is_symlink():
        raise ValueError(
            f"{absolute} is a link, which the newer tool refuses: give what it points to"
        )
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", str(absolute)) or not str(absolute).endswith(ends):
        raise ValueError(
            f"{absolute}: ais_bench takes paths of letters, digits, '_', '.', '-' and "
            f"'/'{f', ending in {ends}' if ends else ''}; "
            "move the project or the file"
        )
    return absolute


# --- the run --------------------------------------------------------------------------------------


def _run(tool: AisBench, arguments: list[str], batch_size: int, watch: Watch | None) -> None:
    started = time.time()
    try:
        code, text = run_tool(
            arguments, timeout_s=TIMEOUT_S, environment=tool.environment, watch=watch
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise AisBenchError(
            f"{tool.python}: no such interpreter; name the one that has ais_bench (AIS_PYTHON=)"
        ) from None
    except TimeoutError as error:
        raise AisBenchError(f"ais_bench {error}") from None
    if code != 0:  # every failure to load prints the same; the log has the cause
        told = text + _recent_log(tool.environment, since=started)
        refuse_failure(f"(exit code {code})", told, text, batch_size)


def refuse_failure(how: str, told: str, text: str, batch_size: int) -> NoReturn:
    """Raise ``DoesNotFit`` or ``AisBenchError`` with the cause that a failed run names.

    Parameters
    ----------
    how
        Follows "ais_bench failed".
    told, text
        All that was said, CANN's log included, and what the tool itself printed.
    """
    unexplained = EXECUTION_FAILED.search(told) and not AIS_CODE.search(told)
    line = find_line(told, EXECUTION_FAILED if unexplained else OUT_OF_MEMORY)
    if line:
        raise DoesNotFit(f"batch size {batch_size}: out of memory on the card ({line})")
    raise AisBenchError(f"ais_bench failed {how}: {explain_ais_error(told, last=_last_line(text))}")


def _recent_log(environment: Mapping[str, str] | None, *, since: float) -> str:
    """Lines with an error's code that CANN has logged since then; empty where it keeps no log."""
    environment = os.environ if environment is None else environment
    place = (
        environment.get("ASCEND_PROCESS_LOG_PATH") or f"{environment.get('HOME', '')}/ascend/log"
    )
    lines = []
    for file in Path(place).rglob("*.log") if Path(place).is_dir() else ():
        if file.stat().st_mtime >= since - 1:
            lines += [
                line
                for line in file.read_text(errors="replace").splitlines()
                if AIS_CODE.search(line)
            ]
    return "\n".join(["", *lines])


def _show_outputs(
    output: Path, total: int, track: Track, moments: Iterable[float]
) -> Iterable[float]:
    """Count the output files as they appear."""

    def count() -> Iterator[int]:
        seen = 0
        for _ in moments:
            there = sum(1 for _ in output.rglob("*_0.bin"))
            yield from range(seen, there)
            seen = max(seen, there)

    return track(count(), label="ais_bench", unit="pair", total=total)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


# --- after the run --------------------------------------------------------------------------------


def find_summary(output: Path, *, newer_than: float) -> Path:
    """Find the summary of this run: next to the output folder, or in it if several devices ran; an
    older one does not count.
    """
    found = [
        output.parent / f"{output.name}_summary.json",
        *sorted(output.glob("[!.]*summary.json")),
    ]
    fresh = [path for path in found if path.is_file() and path.stat().st_mtime >= newer_than - 1]
    if not fresh:
        there = [path for path in found if path.is_file()]
        raise AisBenchError(
            "ais_bench ended without a "
            f"summary{': ' + str(there[0]) + ' is of an earlier run' if there else ''}; its "
            "outputs are not used"
        )
    return fresh[0]


def read_summary(path: Path, *, loop: int = 1) -> Timing:
    """Times of a summary of either generation: a list of milliseconds, or of (start, end) pairs.

    The tool lists every copy to the card and back, so that a call with two inputs counts twice, and
    copies once for all ``loop`` repetitions of a batch. Here the copies are those of one call.
    """
    with reading(path, "a summary of ais_bench", "Run ais_bench again"):
        content = json.loads(read_whole(path))
        times = [
            _read_number(item[1]) - _read_number(item[0])
            if isinstance(item, list)
            else _read_number(item)
            for item in content["npu_compute_time_list"]
        ]
        copies = {name: content.get(f"{name}_latency", {}) for name in ("H2D", "D2H")}
        batches = len(times) / loop
        h2d, d2h = (
            _read_number(copy.get("mean", 0.0)) * _read_number(copy.get("count", batches)) / batches
            for copy in copies.values()
        )
        throughput = _read_number(content["throughput"])
        if not times or min(*times, throughput) <= 0 or min(h2d, d2h) < 0:
            raise ValueError("holds no times, or times that are not positive")
        return Timing(times, h2d, d2h, throughput, "simulated" in content)


def _read_number(found: object) -> float:
    if isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found):
        return float(found)
    raise ValueError(f"holds {found!r:.40} where a finite number is expected")


def collect_outputs(output: Path, stems: list[str], shape: tuple[int, int, int]) -> dict[str, Path]:
    """Stem -> file, by name, from a flat folder, ``deviceN/`` or ``deviceN_M/``; every file
    checked.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(output.rglob("[!.]*_0.bin")):
        found.setdefault(file.name.removesuffix("_0.bin"), []).append(file)
    missing, extra = sorted(set(stems) - set(found)), sorted(set(found) - set(stems))
    if missing or extra:
        raise AisBenchError(
            f"ais_bench left {len(found)} of {len(stems)} outputs; missing: "
            f"{', '.join(missing[:3]) or 'none'}; not asked for: "
            f"{', '.join(extra[:3]) or 'none'}"
        )
    for stem, files in found.items():
        arrays = []
        for file in files:
            arrays.append(read_tensor(file, shape))
            if not np.isfinite(arrays[-1]).all():
                raise AisBenchError(f"{file} holds values that are not finite")
        if any(not np.array_equal(arrays[0], other) for other in arrays[1:]):
            raise AisBenchError(
                f"sample {stem} came from {len(files)} devices, which disagree: "
                f"{', '.join(map(str, files))}"
            )
    return {stem: found[stem][0] for stem in stems}
