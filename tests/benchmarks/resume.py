"""Runs nftbench's command line in this process and says how much CPU time it takes beyond imports.

`python -P resume.py run SUITE --out DIR …` ends with a line `seconds beyond imports, seconds of imports`.
"""

from __future__ import annotations

import builtins
import sys
import time
from typing import Any

spent, depth = 0.0, 0
plain_import = builtins.__import__


def counted_import(*args: Any, **options: Any) -> Any:
    """An import; the time of the outermost one is added up."""
    global spent, depth
    depth += 1
    begun = time.process_time()
    try:
        return plain_import(*args, **options)
    finally:
        depth -= 1
        if depth == 0:
            spent += time.process_time() - begun


def run() -> object:
    """The exit code of nftbench's command line."""
    try:
        from nftbench.cli import main

        main()
    except SystemExit as end:
        return end.code
    return 0


if __name__ == "__main__":
    builtins.__import__ = counted_import
    started = time.process_time()
    code = run()
    print(f"{time.process_time() - started - spent:.4f} {spent:.4f}")
    sys.exit(code)  # type: ignore[arg-type]
