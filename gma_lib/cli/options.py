"""What commands share: their options, messages, and refusals before anything is computed."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from gma_lib.backends.kinds import BACKENDS
from gma_lib.flow import FLOW_SUFFIXES
from gma_lib.flow.refine import REFINEMENTS
from gma_lib.network.bundled import find_bundled, read_card
from gma_lib.network.sizes import MOST_UPDATES
from gma_lib.runs.files import make_plain, name_file
from gma_lib.runs.precisions import PRECISIONS
from gma_lib.runs.progress import clear_count, show_messages
from gma_lib.runs.records import Record

Command = TypeVar("Command", bound=Callable[..., Any])
NOISE = " (seeded weights: this flow is noise)"


class GivenPath(click.Path):
    """A path that is not empty, as a variable of the shell may be: that would be the current
    folder.
    """

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("is empty; name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


PATH = GivenPath(path_type=Path)
PATH_TEXT = GivenPath()  # as it is typed: where it starts is for the library to say


def locate_weights(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """Let a file's name start where one works, as the shell completes it; the package's own
    relative paths start at the project.
    """
    path = Path(given or "").expanduser()
    return str(path.absolute()) if path.is_file() else given


CHECKPOINT = click.option(
    "--checkpoint",
    default="gma-procedural",
    show_default=True,
    type=PATH_TEXT,
    metavar="NAME|FILE",
    callback=locate_weights,
    help="Bundled weights, or a .pth or .safetensors file.",
)
OUTPUTS = click.option(
    "--outputs", default="outputs", show_default=True, type=PATH_TEXT, help="Folder of the results."
)
FLOW_FORMAT = click.option(
    "--format",
    "kind",
    default="flo",
    show_default=True,
    type=click.Choice([suffix[1:] for suffix in FLOW_SUFFIXES]),
    help="Format of flow files in a folder; png is KITTI's.",
)


class FiniteRange(click.FloatRange):
    """A range that NaN and infinity are outside of; every comparison with NaN is false."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Network(TypedDict):
    """What ``network_options`` hands to a command; keywords of ``gma_lib.load``."""

    checkpoint: str
    num_updates: int
    backend: str
    precision: str
    max_pixels: int | None
    refine: str | None


def network_options(updates: int) -> Callable[[Command], Command]:
    """Add the options of a command that computes flow."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    names = [name for name, kind in BACKENDS.items() if kind.for_any_frames]
    options = (
        CHECKPOINT,
        click.option(
            "--updates",
            "num_updates",
            default=updates,
            show_default=True,
            type=click.IntRange(1, MOST_UPDATES),
            help="Refinement iterations.",
        ),
        click.option(
            "--backend",
            default=names[0],
            type=click.Choice(names),
            metavar="NAME",
            help=f"{names[0]} (default), {', '.join(names[1:])}.",
        ),
        click.option(
            "--precision",
            default="float32",
            type=click.Choice(PRECISIONS),
            metavar="NAME",
            help="float32 (default); bfloat16, int8 (AVX-512 BF16 or AMX); cuda: float16.",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(128 * 128),
            metavar="N",
            help="Downscale frames of more than N pixels.  [default: 921600; onnxruntime: less]",
        ),
        click.option(
            "--refine",
            type=click.Choice(REFINEMENTS),
            metavar="NAME",
            help="variational: refine below a pixel, after the network.",
        ),
    )
    return decorate


def describe_refinement(network: Network) -> str:
    """End a result line: refined how, or that it would pay by the card of bundled weights."""
    if network["refine"]:
        return f"; refined ({network['refine']})"
    weights = find_bundled(network["checkpoint"])
    pays = weights and read_card(weights).get("refinement_pays")
    return "; --refine variational makes it more precise" if pays else ""


def output_options(command: Command) -> Command:
    """Add the options that say how much a command prints: ``tell``, ``remark`` and ``detail``
    follow them.
    """
    for flags, told in (
        (("-v", "--verbose"), "Also print the settings."),
        (("-q", "--quiet"), "Print errors only."),
        (("--json", "as_json"), "Print results as JSON, one object per line."),
    ):
        command = click.option(
            *flags, is_flag=True, expose_value=False, callback=_remember, help=told
        )(command)
    return command


def _remember(context: click.Context, option: click.Parameter, value: bool) -> None:
    context.meta[f"gma.{option.name}"] = value
    if value and option.name == "as_json":  # on stdout, messages would stand among the results
        show_messages(on_stderr=True)
    if context.meta.get("gma.quiet"):  # in whichever order they are given
        logging.getLogger("gma_lib").setLevel(logging.ERROR)


def _is_asked(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(f"gma.{name}"))


def tell(record: Record, line: str) -> None:
    """Print a result: a line, or with ``--json`` the record."""
    if _is_asked("as_json"):
        click.echo(json.dumps(make_plain(record)))
    elif not _is_asked("quiet"):
        click.echo(line)


def remark(sentence: str) -> None:
    """Tell the user something without adding to the output."""
    if not _is_asked("quiet"):
        clear_count()
        click.echo(sentence, err=True)


def detail(sentence: str) -> None:
    """Tell the user something with ``--verbose``."""
    if _is_asked("verbose"):
        remark(sentence)


def refuse_existing(results: Iterable[Path], sources: Iterable[Path], overwrite: bool) -> None:
    """Raise ValueError if a result would replace a source, another result or, unless ``overwrite``,
    any other file; or cannot be written.
    """
    taken = {path.resolve() for path in sources}
    for path in results:
        if path.resolve() in taken:
            raise ValueError(f"{name_file(path)} is also read, or named twice; name another file")
        taken.add(path.resolve())
        if path.is_dir():
            raise ValueError(f"{name_file(path)} is a folder; name a file")
        if path.exists() and not overwrite:
            raise ValueError(f"{name_file(path)} exists; name another file or add --overwrite")
        _refuse_unwritable(path)


def refuse_used_folder(folder: Path) -> None:
    """Raise ValueError if a folder holds something, is where one works, or cannot be made."""
    if folder.is_symlink() or folder.resolve() == Path.cwd():
        raise ValueError(f"{name_file(folder)} is a link or the current folder; name a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{name_file(folder)} exists and is not an empty folder; name another one")
    _refuse_unwritable(folder)


def _refuse_unwritable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name_file(path)}: cannot write to {name_file(folder)}")
