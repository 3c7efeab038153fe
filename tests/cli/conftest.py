"""The command line as tests call it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nftbench.cli import heartbeat, main
from nftbench.planning import registry


@pytest.fixture
def call(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`call("run", "tiny.yaml")`: exit code, standard output and standard error, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(heartbeat, "FIRST", float("inf"))  # or what is printed would depend on how busy the machine is
    monkeypatch.setattr(heartbeat, "SILENCE", float("inf"))

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    with registry.added():
        yield run
