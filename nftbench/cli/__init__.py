"""The command line: one file for each family of verbs, and one for the options that they share.

`main` runs a command line and returns its exit code; `app` is the typer application. Verbs import what they need when
they are called, so that `--help` and `list` stay fast.
"""

from __future__ import annotations

from nftbench.cli.entry import app, main

__all__ = ["app", "main"]
