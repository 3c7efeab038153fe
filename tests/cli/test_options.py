"""Groups of options: typer sees their fields as a verb's own options, the verb gets them as one value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from nftbench.cli.options import RunOptions, Selection, SuiteName, with_options
from nftbench.errors import NftbenchError


def call(*words: str) -> dict[str, Any]:
    """What a verb with both groups and an option of its own receives."""
    received: dict[str, Any] = {}
    app = typer.Typer(rich_markup_mode=None)

    def verb(
        context: typer.Context,
        suite: SuiteName,
        selection: Selection,
        options: RunOptions,
        force: Annotated[bool, typer.Option("--force")] = False,
    ) -> None:
        """A verb."""
        received.update(context=context.obj, suite=suite, selection=selection, options=options, force=force)

    app.command()(with_options(verb))
    app(list(words), standalone_mode=False, obj="command line")
    return received


def test_options_that_are_left_out_have_their_defaults() -> None:
    assert call("small") == {
        "context": "command line",
        "suite": "small",
        "selection": Selection(),
        "options": RunOptions(),
        "force": False,
    }
    assert RunOptions().device == "cpu"


def test_each_option_reaches_its_group(tmp_path: Path) -> None:
    received = call(
        *["small", "--defenses", "pmp", "--seeds", "0,1", "--limit", "8", "--jobs", "2", "--device", "cuda:1"],
        *["--data", str(tmp_path), "--plugin", "a.py", "--plugin", "b.py", "--set", "seeds=[0]", "--force"],
    )
    assert received["selection"] == Selection(defenses="pmp", seeds="0,1", limit=8)
    assert received["options"] == RunOptions(
        jobs=2, device="cuda:1", data=tmp_path, plugin=["a.py", "b.py"], changes=["seeds=[0]"]
    )
    assert received["force"]


def test_a_selection_is_read_into_specs_and_numbers() -> None:
    selection = Selection(attacks="full,lora[rank=4,layers=1]", seeds="0,3")
    assert selection.names() == {"defenses": [], "attacks": ["full", "lora[rank=4,layers=1]"], "tasks": []}
    assert selection.base_seeds() == [0, 3]
    with pytest.raises(NftbenchError, match="--tasks ',' names nothing"):
        Selection(tasks=",").names()
    with pytest.raises(NftbenchError, match="'x' is not a seed"):
        Selection(seeds="x").base_seeds()


def test_two_options_of_one_name_are_refused() -> None:
    def verb(options: RunOptions, jobs: int = 1) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name"):
        with_options(verb)
