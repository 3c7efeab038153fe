"""The verbs `list` and `info`: names of all plugins and suites, and details of one."""

from __future__ import annotations

from typing import Annotated

import typer

from nftbench.cli import completion
from nftbench.cli.options import Plugins
from nftbench.errors import NftbenchError, suggest


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="Only this kind: defenses, attacks, tasks, yardsticks or suites.",
            autocompletion=completion.kind,
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List the defenses, attacks, tasks, yardsticks and suites."""
    from nftbench.planning import registry

    _add(plugin)
    kinds = (*registry.KINDS, "suites")
    if kind is not None and kind not in kinds:
        raise NftbenchError(f"list {kind}: no such kind{suggest(kind, kinds)}")
    for which in [kind] if kind is not None else kinds:
        lines = _names(which)
        width = max((len(name) for name, _ in lines), default=0)
        typer.echo("\n".join([which, *(f"  {name:{width}}  {about}".rstrip() for name, about in lines)]))


def _add(files: Plugins) -> None:
    from nftbench.planning import registry

    for file in files or ():
        registry.add_file(file)


def _names(kind: str) -> list[tuple[str, str]]:
    """Each name of a kind with a line about it, and its origin where that is not nftbench."""
    from nftbench import suites
    from nftbench.planning import registry

    if kind == "suites":
        return [(name, suites.read(name).about.split("\n", 1)[0]) for name in suites.names()]
    plugins = registry.available(kind).values()  # type: ignore[arg-type]  # list_ has checked that it is a kind
    return [
        (plugin.name, plugin.about + (f" ({plugin.origin})" if plugin.path and plugin.origin != "nftbench" else ""))
        for plugin in plugins
    ]


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A defense, attack, task, yardstick or suite.",
            autocompletion=completion.anything,
        ),
    ],
    plugin: Plugins = None,
) -> None:
    """Show a plugin's paper, parameters, and claim or knowledge; or a suite's settings."""
    from nftbench.cli import descriptions
    from nftbench.planning import registry

    _add(plugin)
    with registry.importing_added():
        typer.echo(descriptions.describe(name))
