"""The verb `new`: writes a plugin that runs as it is, for its author to change."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nftbench.cli import completion
from nftbench.errors import NftbenchError, suggest

if TYPE_CHECKING:
    from nftbench.planning.registry import Kind

KINDS: dict[str, Kind] = {"defense": "defenses", "attack": "attacks", "task": "tasks"}


def new(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="`defense`, `attack` or `task`.", autocompletion=completion.template),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, in small letters as in `my_defense`.")],
) -> None:
    """Write a small defense, attack or task that runs as it is, to a file here for you to change."""
    if kind not in KINDS:
        raise NftbenchError(f"new {kind}: no such kind{suggest(kind, list(KINDS))}")
    _check_name(kind, name)
    files = {Path(path): _renamed(text, kind, name) for path, text in _template(kind, name).items()}
    for path in files:
        if path.exists():
            raise NftbenchError(f"{path}: is there already, and is left as it is; choose another name")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:  # another process may have written it meanwhile
            file.write(text)
        typer.echo(path)
    first = next(iter(files))
    data, alone = (" --data data", f" --set 'tasks=[{name}]'") if kind == "task" else ("", "")
    typer.echo("next, and after each change:")
    typer.echo(f"  nftbench check {first}{data}")
    typer.echo(f"  nftbench run smoke --plugin {first}{data}{alone}")


def _template(kind: str, name: str) -> dict[str, str]:
    """The texts of a template by the paths of the files that are made of them, the plugin's own file first."""
    folder = resources.files("nftbench.cli") / "templates"
    file = folder / f"{kind}{'.yaml' if kind == 'task' else '.py'}"
    found = {f"{name}{Path(file.name).suffix}": file.read_text(encoding="utf-8")}
    documents: Traversable = folder / kind
    if documents.is_dir():
        paths = sorted(documents.iterdir(), key=lambda path: path.name)
        # Not beside the plugin: no defense or attack can read below --data, not even its own file.
        found |= {f"data/{name}/{path.name}": path.read_text(encoding="utf-8") for path in paths}
    return found


def _renamed(text: str, kind: str, name: str) -> str:
    title = name.replace("_", " ")
    for old, new_text in (
        (f"my_{kind}", name),
        (f"My{kind.capitalize()}", _class_name(name)),
        (f"My {kind}", title[:1].upper() + title[1:]),
    ):
        text = text.replace(old, new_text)
    return text


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that is no name of a plugin, or that something else has.

    Raises:
        NftbenchError: says why, and suggests a name where only its letters are wrong.
    """
    from nftbench import __all__ as exported
    from nftbench.planning import registry

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", Path(name).stem)
        better = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_0123456789")
        hint = f", such as {better!r}" if re.fullmatch(r"[a-z][a-z0-9_]*", better) and better != name else ""
        raise NftbenchError(
            f"new {kind} {name!r}: a name is small letters, digits and underscores, begins with a letter and is no "
            f"word of Python{hint}; the file is written to the folder where you are"
        )
    known = registry.available(KINDS[kind])
    if name in known:
        raise NftbenchError(f"new {kind} {name!r}: {known[name].origin} has one of this name; choose another")
    if _class_name(name) in {*exported, *dir(builtins)}:
        raise NftbenchError(f"new {kind} {name!r}: its class would be {_class_name(name)}, which is taken; add a word")
    if importlib.util.find_spec(name) is not None:
        raise NftbenchError(f"new {kind} {name!r}: Python has a module of this name, which the file could hide")
