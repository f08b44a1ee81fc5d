"""Helpers of tests that run commands."""

import subprocess
import sys

from click.testing import CliRunner

from gma_lib.cli import main

FAST = ["--checkpoint", "seeded", "--updates", "1"]


def gma(*arguments, exit_code=0):
    """Run the command line; returns what it printed, errors included."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done.output


def loaded_by(*arguments) -> set[str]:
    """The modules that a command line imports, as a new process."""
    code = "import sys; from gma_lib.cli import main\nmain(sys.argv[1:], standalone_mode=False)"
    code += "\nprint('loaded', *sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.partition("loaded ")[2].split())
