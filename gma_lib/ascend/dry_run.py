"""Write the files and commands that a machine with CANN needs; CANN need not be installed here."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import click

from gma_lib.ascend import atc
from gma_lib.ascend.ais_bench import AisBench, build_ais_command
from gma_lib.ascend.chip import to_soc_version
from gma_lib.ascend.keep import read_keep_lines
from gma_lib.ascend.operators import REFUSED, UNKNOWN, check_operators
from gma_lib.ascend.rewrite import rewrite_where_needed
from gma_lib.runs import PRECISION_NAMES, PROJECT, shorten_path, show_messages, write_atomically

log = logging.getLogger(__name__)
PASSES = ("clean", "final")


def write_commands(
    model_folder: Path, target: Path, options: atc.AtcOptions, *, keep: str = "guide"
) -> list[list[str]]:
    """Put the model, keep.cfg and ``commands.sh`` into ``target``; return the commands.

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
    name = f"GMA_bs{batch_size}"
    compile_command = atc.build_atc_command(model.name, name, shapes, options)
    tool, om = AisBench(), Path(f"{name}.om")
    infer = [
        build_ais_command(
            tool,
            om,
            input=f"tensors/{pass_name}/image1,tensors/{pass_name}/image2",
            output=f"output_{pass_name}",
            output_dirname=f"bs{batch_size}",
            outfmt="BIN",
            batchsize=batch_size,
        )
        for pass_name in PASSES
    ]
    measure = build_ais_command(tool, om, loop=100, warmup_count=5, batchsize=batch_size)
    commands = [compile_command, ["atc", "--mode=6", f"--om={om}"], *infer, measure]
    with write_atomically(target / "keep.cfg") as partial:
        partial.write_text("".join(f"{line}\n" for line in options.keep_dtype))
    notes = [rewritten, *(_verdicts(model, version) for version in ("6.0", "7.0", "8.0"))]
    lines = [
        "#!/bin/bash",
        "# Needs CANN's environment: source .../set_env.sh",
        *(f"# {note}" for note in notes),
        "set -e",
    ]
    with write_atomically(target / f"commands_bs{batch_size}.sh") as partial:
        partial.write_text(
            "\n".join(lines + [shlex.join(arguments) for arguments in commands]) + "\n"
        )
    return commands


def _verdicts(model: Path, cann: str) -> str:
    words = {
        word: [verdict.what for verdict in check_operators(model, cann) if verdict.word == word]
        for word in (REFUSED, UNKNOWN)
    }
    return f"CANN {cann}: " + "; ".join(
        f"{word}: {', '.join(names) or 'nothing'}" for word, names in words.items()
    )


@click.command()
@click.option("--profile", default="demo", show_default=True)
@click.option("--run", required=True, help="Folder of the run.")
@click.option("--precision", default="float16", show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, required=True)
@click.option(
    "--soc", default="310P3", show_default=True, help="The chip that the other machine has."
)
@click.option(
    "--keep",
    default="guide",
    show_default=True,
    help="What stays float32: guide, or coordinates as well.",
)
@click.option("--outputs", default="outputs", show_default=True, help="Relative to the project.")
def main(
    profile: str,
    run: str,
    precision: str,
    batch_sizes: tuple[int, ...],
    soc: str,
    keep: str,
    outputs: str,
) -> None:
    """Write commands for another machine into the run's folder ascend/, and print where."""
    show_messages()
    modes = PRECISION_NAMES["atc"]
    try:
        if precision not in modes:
            raise ValueError(f"atc is told float16 or float32 here, not {precision}")
        mode = modes[precision]
        kept = atc.AtcOptions.keep_dtype if mode is None else ()
        options = atc.AtcOptions(to_soc_version(soc), precision_mode=mode, keep_dtype=kept)
        for batch_size in batch_sizes:
            target = PROJECT / outputs / profile / run / "ascend"
            write_commands(
                PROJECT / outputs / profile / run / f"bs{batch_size}" / "model",
                target,
                options,
                keep=keep,
            )
            log.info("%s/commands_bs%s.sh", shorten_path(target), batch_size)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"ascend-dry-run: {error}") from error


if __name__ == "__main__":
    main()
