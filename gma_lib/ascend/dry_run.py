"""Write the files and commands that a machine with CANN needs; CANN need not be installed here."""

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from gma_lib.ascend import atc
from gma_lib.ascend.ais_bench import LOOP, WARMUP, AisBench, build_ais_command
from gma_lib.ascend.brought_back import ABOUT, MEASURED, MEMORY, SENT, list_places, place_cann
from gma_lib.ascend.chip import Card, to_soc_version
from gma_lib.ascend.keep import choose_options
from gma_lib.ascend.operators import REFUSED, UNKNOWN, check_operators
from gma_lib.ascend.rewrite import rewrite_where_needed
from gma_lib.data import FramePair, write_guide_tensors
from gma_lib.runs import Record, hash_file, shorten_path, write_json, write_text

RUN = """#!/bin/bash
# One batch size that fails, as 16 does on a card of 24 GB, does not stop the others.
set -uo pipefail
umask 022
cd "$(dirname "$0")" || exit 1
chmod -R go-w .
mkdir -p measured
status=0
for size in {sizes}; do
  log="measured/bs$size.log"
  rm -f "measured/bs$size.sha256" "$log.sha256"
  bash "commands_bs$size.sh" 2>&1 | tee "$log" && continue
  echo "batch size $size failed" >&2
  status=1
  # what only CANN's own log says of it
  find "${{ASCEND_PROCESS_LOG_PATH:-${{HOME:-}}/ascend/log}}" -name '*.log' \\
    -newer "commands_bs$size.started" -exec grep -hE '[E1-5][A-Z0-9][0-9]{{4}}' {{}} + \\
    >> "$log" 2>/dev/null
  sha256sum sent.sha256 "$log" > "$log.sha256"
done
exit "$status"
"""
README = """# GMA on an Ascend card

Batch sizes {sizes}. Needed here: CANN, and a Python with ais_bench and aclruntime.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    AIS_PYTHON=python3 DEVICE=0 bash run.sh

The flow of every pair is then in output_*, the times are in measured. Copy these folders into
this one on the machine that made it, and score them there:

    gma ascend collect {here}
"""


def write_folder(
    models: Mapping[int, Path],
    pairs: list[FramePair],
    target: Path,
    precision: str,
    card: Card,
    about: Record,
    *,
    plain_names: bool = False,
) -> None:
    """Write models, keep lists, tensors, scripts and a README; what was sent is listed last.

    The scripts take AIS_PYTHON and DEVICE from their environment. Results that were brought back
    earlier stay; they count only where they are of these models.

    Parameters
    ----------
    models
        Batch size -> the folder where 02_export left ``gma.onnx``.
    card
        Chip, what stays float32, and how atc is told the precision.
    about
        What ``dry_run.json`` holds besides: which run this is of.
    plain_names
        As for ``gma_lib.data.guide_tensors.write_guide_tensors``.
    """
    for old in (ABOUT, SENT, "GMA_*.onnx", "keep_*.cfg", "commands_*"):
        for file in target.glob(old):
            file.unlink()
    shutil.rmtree(target / "tensors", ignore_errors=True)
    passes = dict.fromkeys(pair.pass_name for pair in pairs)
    sizes = {
        size: write_commands(folder, target, precision, card, passes)
        for size, folder in models.items()
    }
    numbers = write_guide_tensors(
        pairs, target / "tensors", with_truth=False, plain_names=plain_names
    )
    words = " ".join(map(str, sizes))
    write_text(target / "run.sh", RUN.format(sizes=words))
    write_text(target / "README.md", README.format(sizes=words, here=shorten_path(target)))
    sent = [
        *(target / name for one in sizes.values() for name in one["files"]),
        *sorted((target / "tensors").rglob("*.bin")),
    ]
    sums = (f"{hash_file(file)}  {file.relative_to(target).as_posix()}\n" for file in sent)
    write_text(target / SENT, "".join(sums))
    about |= {
        "sizes": sizes,
        "passes": {
            name: sorted(numbers[pair.name] for pair in pairs if pair.pass_name == name)
            for name in passes
        },
        "sent_sha256": hash_file(target / SENT),
    }
    write_json(target / ABOUT, about)


def write_commands(
    model_folder: Path,
    target: Path,
    precision: str,
    card: Card,
    passes: Iterable[str],
) -> Record:
    """Put the model, its keep.cfg and ``commands_bs<n>.sh`` into ``target``; return what
    ``dry_run.json`` says of them. Each batch size has files of its own.
    """
    source = Path(model_folder) / "gma.onnx"
    if not source.is_file():
        raise FileNotFoundError(f"{shorten_path(source)} is missing: run 02_export first")
    target.mkdir(parents=True, exist_ok=True)
    shapes = atc.read_input_shapes(source)
    batch_size, _, height, width = shapes["image1"]
    model = target / f"GMA_m_{batch_size}.onnx"
    rewritten = rewrite_where_needed(source, model)
    soc = to_soc_version(str(card.soc))
    options = choose_options(soc, precision, model, card.keep, card.precision_mode_v2)
    atc.lint_keep(options.keep_dtype, model)
    om, kept = f"GMA_bs{batch_size}.om", f"keep_bs{batch_size}.cfg"
    write_text(target / kept, "".join(f"{line}\n" for line in options.keep_dtype))
    compile_it = atc.build_atc_command(model.name, Path(om).stem, shapes, options, kept)
    places = list_places(passes, batch_size)
    flags = {"output_dirname": f"bs{batch_size}", "batchsize": batch_size}
    commands = [
        build_ais_command(
            AisBench(),
            Path(om),
            input=f"tensors/{pass_name}/image1,tensors/{pass_name}/image2",
            output=f"output_{pass_name}",
            outfmt="BIN",
            **flags,
        )
        for pass_name in passes
    ] + [
        build_ais_command(
            AisBench(), Path(om), output=MEASURED, loop=LOOP, warmup_count=WARMUP, **flags
        )
    ]
    notes = [rewritten, *(_support(model, version) for version in ("6.0", "7.0", "8.0", "9.0"))]
    head = "".join(f"# {note}\n" for note in notes)
    script = target / f"commands_bs{batch_size}.sh"
    write_text(script, f"#!/bin/bash\n{head}{_write_script(compile_it, om, commands, places)}")
    return {
        "files": [model.name, kept, script.name],
        "om": om,
        "source_sha256": hash_file(source),
        "onnx_sha256": hash_file(model),
        "soc": soc,
        "keep": card.keep or "guide",
        "command": compile_it,
        "options": asdict(options),
        "output_shape": (2, height, width),
    }


def _write_script(
    compile_it: list[str],
    om: str,
    commands: list[list[str]],
    places: list[str],
) -> str:
    """Return the commands of one batch size: results of an earlier run go first, and the list of
    those of this one comes last.
    """
    size = Path(places[0]).name
    cann = place_cann(size)
    results = " ".join(
        [cann, *(word for place in places for word in (place, f"{place}_summary.json"))]
    )
    lines = [
        "set -eu",
        "umask 022",
        'cd "$(dirname "$0")"',
        f"touch commands_{size}.started",
        f"rm -rf {om} {Path(om).stem}_*.om {MEASURED}/{size}.sha256 {results}",
        f"mkdir -p {cann} {' '.join(str(Path(place).parent) for place in places)}",
        'for file in "${ASCEND_TOOLKIT_HOME:-nowhere}"/version.*; do',
        f'  if [ -f "$file" ] && [ -r "$file" ]; then cp "$file" {cann}/; fi',
        "done",
        f"sha256sum --check --quiet {SENT}",
        shlex.join(compile_it),
        f"if [ ! -f {om} ]; then mv {Path(om).stem}_*.om {om}; fi  # some add the system's name",
        f"atc --mode=6 --om={om} 2>&1 | tee {cann}/{MEMORY}",
        *(shlex.join(arguments) for arguments in commands),
        f"find {SENT} {om} {results} -type f -exec sha256sum {{}} + > done_{size}",
        f"mv done_{size} {MEASURED}/{size}.sha256",
    ]
    script = "\n".join(lines) + "\n"
    for fixed, named in (
        ("python3 -m ais_bench", '"${AIS_PYTHON:-python3}" -m ais_bench'),
        ("--device 0", '--device "${DEVICE:-0}"'),
    ):
        script = script.replace(fixed, named)
    return script


def _support(model: Path, cann: str) -> str:
    words = {
        word: [one.what for one in check_operators(model, cann) if one.word == word]
        for word in (REFUSED, UNKNOWN)
    }
    return f"CANN {cann}: " + "; ".join(
        f"{word}: {', '.join(names) or 'nothing'}" for word, names in words.items()
    )
