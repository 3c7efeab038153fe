"""The import rules of pyproject.toml, checked on the package as it is installed: with the plugin folders inside.

`make layers` runs this file; import-linter itself would see only the folder nftbench/ and miss every plugin.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ("defenses", "attacks", "tasks")


def lay_out(folder: Path) -> None:
    """Link the sources into `folder` as a wheel would install them."""
    package = folder / "nftbench"
    package.mkdir()
    for source in (ROOT / "nftbench").iterdir():
        if source.name not in (*PLUGINS, "__pycache__"):
            (package / source.name).symlink_to(source)
    for kind in PLUGINS:
        (package / kind).symlink_to(ROOT / kind)


def lint() -> int:
    """Check every contract, print what is broken, return 0 where all are kept."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        with contextlib.chdir(folder):
            return int(lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True))


if __name__ == "__main__":
    sys.exit(lint())
