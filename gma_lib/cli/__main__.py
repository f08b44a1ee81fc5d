"""``python -m gma_lib.cli``: the same as ``gma``."""

from gma_lib.cli import main

main()
