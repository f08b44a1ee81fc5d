"""``gma``: the command line; a module holds one command, or a few that belong together.

Exit codes: 0 done, 1 an input or a result is wrong, 2 the command is, 130 interrupted;
``gma reproduce`` has more.
"""

import os
import sys
from pathlib import Path
from pkgutil import resolve_name
from traceback import walk_tb

import click

import gma_lib
from gma_lib import runs
from gma_lib.runs.extras import name_extra

# Title -> command -> where it is and its line of help. A module is imported when its command runs,
# so that `gma --help` answers at once and `gma flow` of a known size never loads PyTorch.
GROUPS = {
    "Flow of your own frames": {
        "flow": ("gma_lib.cli.flow:main", "Compute flow between two images, or many pairs."),
        "video": ("gma_lib.cli.video:main", "Compute flow along a video or a folder of images."),
        "show": ("gma_lib.cli.show:main", "Show a flow file as an image."),
        "evaluate": ("gma_lib.cli.evaluate:main", "Score flow files against ground truth."),
        "export": ("gma_lib.cli.export:main", "Write the network as ONNX for one frame size."),
        "submit": ("gma_lib.cli.submit:main", "Compute a submission to Sintel's benchmark."),
        "cache": ("gma_lib.cli.cache:main", "Show or clear the cached models."),
    },
    "Reproduce and verify": {
        "doctor": ("gma_lib.cli.doctor:main", "Check this machine."),
        "reproduce": ("gma_lib.cli.reproduce:main", "Run the notebooks and write the report."),
        "report": ("gma_lib.cli.report:main", "Write the report from existing results."),
        "verify": (
            "gma_lib.cli.verification:main",
            "Compare this machine's numbers with expected ones.",
        ),
        "replay": ("gma_lib.cli.verification:replay", "Recompute a shared report and compare."),
        "record": ("gma_lib.cli.verification:record", "Record the numbers that verify expects."),
        "data": ("gma_lib.cli.data:main", "Fetch MPI Sintel."),
        "plan": ("gma_lib.cli.plan:main", "Estimate time and memory on more workers."),
    },
    "Train": {
        "train": ("gma_lib.cli.train:train_weights", "Train GMA on procedural scenes."),
        "held-out": ("gma_lib.cli.train:held_out", "Score weights on held-out scenes."),
        "card": ("gma_lib.cli.train:card", "Write the card of the bundled weights."),
    },
    "Measure and convert": {
        "bench": ("gma_lib.cli.bench:compare_variants", "Compare variants of the network."),
        "precision": ("gma_lib.cli.bench:score_precisions", "Score reduced precisions."),
        "half-precision": ("gma_lib.cli.bench:emulate_half", "Emulate float16, part by part."),
        "rewrite": ("gma_lib.cli.ascend_files:rewrite", "Write an ONNX file with 32-bit integers."),
        "ascend": (
            "gma_lib.cli.ascend_files:ascend",
            "Write inputs for an Ascend machine; score its results.",
        ),
    },
}
COMMANDS = {name: told for group in GROUPS.values() for name, told in group.items()}


class LazyGroup(click.Group):
    """Commands that are imported when they run, and errors of the library in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = resolve_name(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command and not ctx.resilient_parsing:  # which only completes words
            _refuse_repeated(command.context_class(command, ctx, info_name=name), rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), help_line) for name, (_, help_line) in group.items()]
                formatter.write_dl(rows)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except OSError as error:  # of what click prints itself, as help
            raise click.ClickException(_describe(error)) from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            Path.cwd()
        except FileNotFoundError:
            raise click.ClickException("the current folder is gone: change to another") from None
        try:
            return super().invoke(ctx)
        except (click.Abort, click.exceptions.Exit):  # RuntimeErrors too
            raise
        except BrokenPipeError:  # as of `gma ... | head`: click ends without a word
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except ModuleNotFoundError as error:
            raise click.ClickException(name_extra(error)) from error
        except (ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
            raise click.ClickException(_describe(error)) from error


def _refuse_repeated(ctx: click.Context, args: list[str]) -> None:
    """Raise BadOptionUsage for an option with one value that is given twice; click takes the last
    without a word.
    """
    _, rest, given = ctx.command.make_parser(ctx).parse_args([*args])
    options = [option for option in given if isinstance(option, click.Option)]
    if any(option.is_eager for option in options):  # as help, whatever else is given
        return
    for option in options:
        if options.count(option) > 1 and not (option.multiple or option.is_flag):
            name = option.opts[-1]
            raise click.BadOptionUsage(name, f"{name} is given more than once", ctx)
    if isinstance(ctx.command, click.Group) and rest:
        name, *rest = rest
        if command := ctx.command.get_command(ctx, name):
            _refuse_repeated(command.context_class(command, ctx, info_name=name), rest)


def _describe(error: Exception) -> str:
    """One sentence; where the system refused a file or a folder, with its name and a remedy."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        name = runs.name_file(error.filename)
        return f"{name}: {error.strerror}. Correct that, or name another file or folder."
    *_, (frame, _) = walk_tb(error.__traceback__)
    if isinstance(error, OSError) and frame.f_code.co_name in ("echo", "emit"):  # which print
        with open(os.devnull, "w") as nowhere:  # else Python tries again at its end
            os.dup2(nowhere.fileno(), 1)
        return f"cannot print: {error.strerror}"
    return str(error) or type(error).__name__


@click.group(
    cls=LazyGroup,
    epilog="Example: gma flow first.png second.png -o flow.flo --figure flow.png",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(gma_lib.__version__, prog_name="gma")
def main() -> None:
    """Compute and score optical flow with GMA (Global Motion Aggregation)."""
    _open_standard_streams()
    runs.show_messages()


def _open_standard_streams() -> None:
    """Give what a shell closed (``2>&-``) to nobody: else the next file that is opened gets its
    number, and with it the messages of libraries.
    """
    names = ("stdin", "stdout", "stderr")
    while (number := os.open(os.devnull, os.O_RDWR)) < len(names):
        setattr(sys, names[number], os.fdopen(number, "w" if number else "r"))
    os.close(number)
