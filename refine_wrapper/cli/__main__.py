"""``python -m refine_wrapper.cli``: the console script where none is installed."""

from refine_wrapper.cli import main

main()
