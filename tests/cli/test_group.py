"""``gma``: help at once, exit codes."""

import re
import shlex
import subprocess
import sys

import click
import pandas as pd
import pytest
from click.shell_completion import ShellComplete
from command_line import gma, loaded_by

from gma_lib.cli import COMMANDS, bench, main


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_screen(command):
    text = gma(*([command] if command else []), "--help")
    assert len(text.splitlines()) <= (34 if command else 40)
    assert max(map(len, text.splitlines())) <= 110


def test_help_answers_at_once():
    loaded = loaded_by("--help")
    assert "gma_lib.cli" in loaded
    assert not loaded & {"torch", "numpy", "openvino", "cv2", "matplotlib", "gma_lib.cli.flow"}


def test_a_wrong_command_line_exits_with_2(tmp_path):
    gma("flow", "a.png", exit_code=2)
    gma("video", "a", "-o", tmp_path / "b", "--max-pixels", "3", exit_code=2)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_help_ends_with_an_example_that_its_options_have(command):
    for parsed in list_with_subcommands(main.get_command(None, command) if command else main):
        words = re.search(r"gma (.*)", parsed.epilog)[1].split()
        called = main
        while isinstance(called, click.Group):
            called = called.get_command(None, words.pop(0))
        known = {option for parameter in called.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def list_with_subcommands(command):
    subcommands = {} if command is main else getattr(command, "commands", {})
    return [command, *subcommands.values()]


def test_a_choice_that_there_is_not_lists_those_there_are(tmp_path):
    said = gma("flow", "a", "b", "-o", tmp_path / "f.flo", "--backend", "tensorrt", exit_code=2)
    assert "openvino" in said
    assert not re.search("ascend|eager_cuda", said)  # only in the notebooks


# As on Windows: what only POSIX has cannot be imported. portalocker has other locks there.
NO_POSIX = """
import signal
import sys
import portalocker
for name in ("fcntl", "resource", "prctl", "pwd", "termios"):
    sys.modules[name] = None
for name in ("SIGALRM", "SIGKILL", "SIGSTOP", "SIGCONT"):
    delattr(signal, name)
from gma_lib.cli import COMMANDS, main
for command in ("", *COMMANDS):
    main([*([command] if command else []), "--help"], standalone_mode=False)
"""


@pytest.mark.slow
def test_help_needs_nothing_that_only_posix_has():
    done = subprocess.run([sys.executable, "-c", NO_POSIX], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS) + 1


def test_messages_go_nowhere_where_stderr_is_closed(tmp_path):
    """Not into the next file that is opened, which gets the number of what is closed."""
    code = "from gma_lib.cli import main; import os, sys\n"
    code += "try: main(['show', 'none.flo', '-o', 'a.png'])\n"
    code += "except SystemExit as error:\n    with open('result', 'w') as file:\n"
    code += "        os.write(2, b'a message'); print(error.code, file.fileno() > 2, file=file)"
    subprocess.run(f"{sys.executable} -c {shlex.quote(code)} 2>&-", shell=True, cwd=tmp_path)
    assert (tmp_path / "result").read_text() == "1 True\n"


@pytest.mark.parametrize("arguments", ["--help", "flow --help", "cache"])
def test_a_full_disk_behind_the_output_is_a_sentence(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gma_lib.cli", *arguments.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: cannot print: No space left on device"]


def test_what_has_nothing_to_do_with_printing_is_not_called_so(monkeypatch):
    def refuse():
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("gma_lib.cli.cache.cache_folder", refuse)
    assert gma("cache", exit_code=1) == "Error: [Errno 111] Connection refused\n"


def test_a_current_folder_that_is_gone_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "current folder is gone" in gma("flow", "a.png", "b.png", "-o", "c.flo", exit_code=1)


@pytest.mark.parametrize(
    "line",
    [
        "reproduce --set outputs=FOLDER",
        "verify",
        "replay demo.zip",
        "record --reason change",
        "bench cpu.yaml --out FOLDER",
        "ascend collect .. --outputs FOLDER",
    ],
)
def test_what_needs_posix_says_so_before_it_writes_anything(line, tmp_path, monkeypatch):
    monkeypatch.delattr("signal.SIGALRM")
    monkeypatch.chdir(tmp_path)
    said = gma(*line.replace("FOLDER", str(tmp_path / "out")).split(), exit_code=1)
    assert len(said.splitlines()) == 1
    assert "Windows" in said
    assert not any(tmp_path.iterdir())


def list_leaves(command, *names):
    """Every command with its options, by the words that call it."""
    if not isinstance(command, click.Group):
        yield names, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        yield from list_leaves(command.get_command(context, name), *names, name)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_value_given_twice_is_refused_where_one_is_taken(command):
    for names, leaf in list_leaves(main.get_command(None, command), command):
        for option in leaf.params:
            if not isinstance(option, click.Option) or option.is_flag:
                continue
            line = [*names, *2 * [option.opts[-1], *["1"] * option.nargs]]
            context = main.make_context("gma", [*line])
            if option.multiple:
                main.resolve_command(context, line)
                continue
            with pytest.raises(click.BadOptionUsage) as raised:
                main.resolve_command(context, line)
            assert raised.value.option_name == option.opts[-1]


def test_two_spellings_are_one_option_and_help_answers_all_the_same(tmp_path):
    twice = "flow", "a.png", "b.png", "-o", tmp_path / "a.flo", f"--output={tmp_path / 'b.flo'}"
    assert "more than once" in gma(*twice, exit_code=2)
    assert gma(*twice, "--help") == gma("flow", "--help")
    completion = ShellComplete(main, {}, "gma", "_GMA_COMPLETE")
    offered = completion.get_completions([*map(str, twice), "--backend"], "open")
    assert [item.value for item in offered] == ["openvino"]


@pytest.mark.parametrize("command", ["reproduce", "report", "verify", "record", "ascend dry-run"])
def test_profiles_are_completed(command):
    completion = ShellComplete(main, {}, "gma", "_GMA_COMPLETE")
    offered = completion.get_completions([*command.split(), "--profile"], "")
    assert [item.value for item in offered] == ["demo", "quick", "sintel", "tiny"]
    offered = completion.get_completions([*command.split(), "--profile"], "t")
    assert [item.value for item in offered] == ["tiny"]


@pytest.mark.parametrize(
    "line",
    [
        "verify --quick --profile tiny",
        "verify --updates 32",
        "verify --quick --updates 6",
        "card --sintel folder",
        "video clip -o flows --fps 5",
        "rewrite FILE narrow.onnx --size batch 2 --size batch 3",
        "ascend dry-run --batch-size 0",
        "half-precision folder --most 0",
        "half-precision folder --most -1",
        "half-precision folder --overwrite",
        "submit folder -o submission --split validation",
    ],
)
def test_an_option_that_would_be_left_out_or_means_nothing_is_refused(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gma(*line.replace("FILE", __file__).split(), exit_code=2)


def test_two_configurations_of_one_name_are_refused_before_any_is_measured(tmp_path, monkeypatch):
    for name in ("load_comparison", "compare", "tabulate_comparison", "write_json"):
        monkeypatch.setattr(bench, name, lambda *_, **__: {})
    files = tmp_path / "a/cpu.yaml", tmp_path / "b/cpu.yml"
    gma("bench", *files, "--out", tmp_path, exit_code=1)
    gma("bench", files[0], files[1].with_name("gpu.yml"), "--out", tmp_path)


def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(
    tmp_path, monkeypatch
):
    measured = []
    for name in ("load_comparison", "tabulate_comparison", "choose_pairs", "tabulate_study"):
        monkeypatch.setattr(bench, name, lambda *_, **__: [])
    for name in ("compare", "measure_precisions", "study_variants"):
        monkeypatch.setattr(bench, name, lambda *_, **__: measured.append(1) or pd.DataFrame())
    monkeypatch.setattr(bench, "describe_costs", lambda found: "")
    monkeypatch.setattr(bench, "write_json", lambda path, found: path.write_text("{}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    commands = {
        ("bench", "cpu.yaml"): ("--out=file", "--out=.", "cpu.json"),
        ("precision",): ("--out=file/a.json", "--out=precision.json", "precision.json"),
        ("half-precision", "folder"): ("--out=file/a.json", "--out=half.json", "half.json"),
    }
    for command, (impossible, possible, result) in commands.items():
        measured.clear()
        gma(*command, impossible, exit_code=1)
        assert not measured
        gma(*command, possible)
        assert (tmp_path / result).is_file()
        gma(*command, possible, exit_code=1)  # it exists now
        assert len(measured) == 1
        gma(*command, possible, "--overwrite")
        assert len(measured) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_refused(command):
    """It would be the current folder, where a variable of the shell is not set."""
    for names, leaf in list_leaves(main.get_command(None, command), command):
        for one in leaf.params:
            if isinstance(one.type, click.Path):
                with pytest.raises(click.BadParameter):
                    one.type.convert("", one, None)
            else:
                assert not re.search("FILE|FOLDER", one.metavar or ""), (names, one.name)
