"""Shell completion: the words that may stand at a place of a command line.

A shell asks each time somebody presses Tab, so nothing here may import torch or compute anything. A function that finds
no word leaves the place to the shell, which offers files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nftbench.planning.registry import Kind


def suite(incomplete: str) -> list[str]:
    """Names of suites."""
    from nftbench import suites

    return _starting(incomplete, suites.names())


def paper(incomplete: str) -> list[str]:
    """Papers that have a suite, as `reproduce` names them."""
    from nftbench import suites

    return _starting(incomplete, suites.papers())


def kind(incomplete: str) -> list[str]:
    """What `list` lists."""
    from nftbench.planning.registry import KINDS

    return _starting(incomplete, (*KINDS, "suites"))


def anything(incomplete: str) -> list[str]:
    """Whatever has a name: plugins and suites."""
    from nftbench.planning import registry

    plugins = [name for which in registry.KINDS for name in registry.available(which)]
    return [*_starting(incomplete, dict.fromkeys(plugins)), *suite(incomplete)]


def template(incomplete: str) -> list[str]:
    """What `new` writes."""
    from nftbench.cli.new import KINDS

    return _starting(incomplete, KINDS)


def plugins(of_kind: Kind) -> Callable[[str], list[str]]:
    """A function that completes the last name of a list with commas, as in `pmp,no`."""

    def complete(incomplete: str) -> list[str]:
        from nftbench.planning import registry

        before, comma, last = incomplete.rpartition(",")
        if before.count("[") > before.count("]"):
            return []  # the last comma stands between parameters
        left = [name for name in registry.available(of_kind) if name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in _starting(last, left)]

    return complete


def folder(incomplete: str) -> list[str]:
    """Folders of results in this folder and in those in it, such as `runs/small`."""
    found = (path.parent for pattern in ("*", "*/*") for path in Path().glob(f"{pattern}/manifest.json"))
    return _starting(incomplete, sorted(map(str, found)))


def mend_zsh() -> None:
    """Make the first Tab of a zsh count, in the script that typer installs.

    zsh loads that file at the first Tab and calls it as the completion. The file of typer 0.29 only defines the
    function that completes, so this Tab offers nothing. The added line calls it, but not where the file is sourced.
    """
    from typer import _completion_shared

    _completion_shared._completion_scripts["zsh"] += (
        '[[ $zsh_eval_context[-1] != loadautofunc ]] || %(complete_func)s "$@"\n'
    )


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
