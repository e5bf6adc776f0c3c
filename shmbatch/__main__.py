"""``python -m shmbatch``: the command line."""

from .cli import main

main()
