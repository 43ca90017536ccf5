"""`python -m ckpt_tools.cli` is `ckpt`."""

from .main import main

main()
