"""``python -m prm_edge``: the command line."""

from .cli import main

main()
