"""Output of the command line: tables on standard output, messages on standard error, and exit codes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BAD_CELLS = 1
"""Exit code of a run in which a cell is not ok, of a proof that is not valid, of a claim that must hold and does not,
and of a plugin that breaks a promise."""
BAD_INPUT = 2
"""Exit code of a command line that cannot be carried out."""
PIPE_WIDTH = 160
"""Columns of standard output where it is no terminal: enough for every table."""


def console() -> Console:
    """Standard output for rich's tables."""
    from rich.console import Console

    output = Console()
    return output if output.is_terminal else Console(width=PIPE_WIDTH)


def complain(message: str) -> None:
    """Print the message as one line on standard error."""
    print(f"nftbench: {' '.join(message.split())}", file=sys.stderr)
