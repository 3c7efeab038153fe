"""What the page of architectures says is what happens there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import architectures

FOUND = {entry["model_type"]: entry for entry in json.loads(architectures.FILE.read_text(encoding="utf-8"))}


def test_every_architecture_is_on_the_page() -> None:
    assert {kind: entry["name"] for kind, entry in FOUND.items()} == architectures.NAMES


def test_some_of_what_the_page_says_of_one_architecture_is_so(tmp_path: Path) -> None:
    found = architectures.outcomes("gemma3_text", tmp_path, defenses=["prune", "dlr_lock"], attacks=["lora"])
    assert found.items() <= FOUND["gemma3_text"]["outcomes"].items()
    assert {"reading", "gradients", "rewrite", "defense prune", "defense dlr_lock", "attack lora"} < found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", architectures.NAMES)
def test_all_that_the_page_says_is_so(kind: str, tmp_path: Path) -> None:
    """If it is not, `make architectures tables` says in the page what is."""
    assert architectures.outcomes(kind, tmp_path) == FOUND[kind]["outcomes"]
