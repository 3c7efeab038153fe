"""The command line."""

from __future__ import annotations

from nftbench.cli.entry import app, main

__all__ = ["app", "main"]
