"""The path of a plugin in a command line: a file or folder, and the parameters that may follow it in brackets."""

from __future__ import annotations

from pathlib import Path

from nftbench.errors import NftbenchError


def split_path(given: str | Path) -> tuple[Path | None, str]:
    """A file or folder and the parameters in brackets after it; of text that names neither, None and the text."""
    if isinstance(given, Path):
        return given, ""
    place, bracket, rest = given.partition("[")
    path = Path(place)
    is_path = path.suffix in (".py", ".yaml") or len(path.parts) > 1 or (path / "__init__.py").is_file()
    return (path, bracket + rest) if is_path else (None, given)


def plugin_path(given: str) -> Path:
    """The file or folder of a plugin in a command line, where parameters in brackets may follow.

    Raises:
        NftbenchError: there is no such file, or it is neither a Python nor a YAML file.
    """
    path = split_path(given)[0] or Path(given.partition("[")[0])
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise NftbenchError(f"{path}: a folder without an `__init__.py`; name the files in it, as {path / '*.py'}")
    if not path.exists():
        raise NftbenchError(f"{path}: no such file, nor a folder with an `__init__.py`")
    if path.is_file() and path.suffix not in (".py", ".yaml"):
        raise NftbenchError(f"{path}: a plugin is a Python file, or a text task in a YAML file")
    return path
