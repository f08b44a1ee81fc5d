"""Write the files and commands that a machine with CANN needs; CANN need not be installed here."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gma_lib.ascend import atc
from gma_lib.ascend.ais_bench import AisBench, build_ais_command
from gma_lib.ascend.keep import read_keep_lines
from gma_lib.ascend.operators import REFUSED, UNKNOWN, check_operators
from gma_lib.ascend.rewrite import rewrite_where_needed
from gma_lib.data import PASSES
from gma_lib.runs import shorten_path
from gma_lib.runs.files import write_text


def write_commands(
    model_folder: Path, target: Path, options: atc.AtcOptions, *, keep: str = "guide"
) -> list[list[str]]:
    """Put the model, its keep.cfg and ``commands_bs<n>.sh`` into ``target``; return the commands.

    Each batch size has files of its own. The script takes AIS_PYTHON and DEVICE from its
    environment.

    Parameters
    ----------
    model_folder
        Where 02_export left ``gma.onnx``.
    keep
        What stays float32 where the options keep anything: a key of
        ``gma_lib.ascend.keep.CHOICES``.
    """
    source = Path(model_folder) / "gma.onnx"
    if not source.is_file():
        raise FileNotFoundError(f"{shorten_path(source)} is missing: run 02_export first")
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    shapes = atc.read_input_shapes(source)
    batch_size = shapes["image1"][0]
    model = target / f"GMA_m_{batch_size}.onnx"
    rewritten = rewrite_where_needed(source, model, largest_batch=2)
    if options.keep_dtype and keep != "guide":
        options = replace(options, keep_dtype=read_keep_lines(model, keep))
    atc.lint_keep(options.keep_dtype, model)
    name, kept = f"GMA_bs{batch_size}", f"keep_bs{batch_size}.cfg"
    tool, om, about = AisBench(), Path(f"{name}.om"), {"output_dirname": f"bs{batch_size}"}
    infer = [
        build_ais_command(
            tool,
            om,
            input=f"tensors/{pass_name}/image1,tensors/{pass_name}/image2",
            output=f"output_{pass_name}",
            outfmt="BIN",
            batchsize=batch_size,
            **about,
        )
        for pass_name in PASSES
    ]
    loop = {"loop": 100, "warmup_count": 5, "batchsize": batch_size}
    commands = [
        atc.build_atc_command(model.name, name, shapes, options, kept),
        ["atc", "--mode=6", f"--om={om}"],
        *infer,
        build_ais_command(tool, om, output="measured", **loop, **about),
    ]
    write_text(target / kept, "".join(f"{line}\n" for line in options.keep_dtype))
    notes = [rewritten, *(_verdicts(model, version) for version in ("6.0", "7.0", "8.0"))]
    script = _write_script(commands, notes, batch_size)
    write_text(target / f"commands_bs{batch_size}.sh", script)
    return commands


def _write_script(commands: list[list[str]], notes: Sequence[str], batch_size: int) -> str:
    """Return a shell script of the commands, which empties their output folders first."""
    outputs = [*(f"output_{pass_name}" for pass_name in PASSES), "measured"]
    lines = [
        "#!/bin/bash",
        *(f"# {note}" for note in notes),
        "set -eu",
        "umask 022",
        'cd "$(dirname "$0")"',
        f"mkdir -p {' '.join(outputs)}",
        f"rm -rf {' '.join(f'{place}/bs{batch_size}' for place in outputs)}",
        *(shlex.join(arguments) for arguments in commands),
    ]
    script = "\n".join(lines) + "\n"
    for fixed, named in (
        ("python3 -m ais_bench", '"${AIS_PYTHON:-python3}" -m ais_bench'),
        ("--device 0", '--device "${DEVICE:-0}"'),
    ):
        script = script.replace(fixed, named)
    return script


def write_run_script(target: Path, batch_sizes: Sequence[int]) -> None:
    """Write ``run.sh``, which runs the commands of every batch size, and a README."""
    sizes = " ".join(map(str, batch_sizes))
    write_text(
        target / "run.sh",
        f"""#!/bin/bash
# One batch size that fails, as 16 does on a card of 24 GB, does not stop the others.
status=0
cd "$(dirname "$0")" || exit 1
chmod -R go-w .
for size in {sizes}; do
  bash "commands_bs$size.sh" || {{ echo "batch size $size failed" >&2; status=1; }}
done
exit "$status"
""",
    )
    write_text(
        target / "README.md",
        f"""# GMA on an Ascend card

Batch sizes {sizes}. Needed here: CANN, and a Python with ais_bench and aclruntime.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    AIS_PYTHON=python3 DEVICE=0 bash run.sh

The flow of every pair is then in output_clean/ and output_final/, the times in measured/.
Each folder bs<n> has its bs<n>_summary.json beside it.
""",
    )


def _verdicts(model: Path, cann: str) -> str:
    words = {
        word: [verdict.what for verdict in check_operators(model, cann) if verdict.word == word]
        for word in (REFUSED, UNKNOWN)
    }
    return f"CANN {cann}: " + "; ".join(
        f"{word}: {', '.join(names) or 'nothing'}" for word, names in words.items()
    )
