"""A command that would be silent for long says what it does."""

from __future__ import annotations

import time

import pytest

from nftbench.cli import heartbeat
from nftbench.cli.heartbeat import Heartbeat


def test_a_line_is_printed_after_each_silence_and_not_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heart, printed = Heartbeat(), []
    for second in range(1, 61):
        now[0] = float(second)
        if second == 20:
            heart.say("a cell is done")
        heart.beat(lambda: "planning")
        printed += [(second, line) for line in capsys.readouterr().out.splitlines()]
    assert [second for second, _ in printed] == [5, 17, 20, 32, 44, 56]
    assert [line for _, line in printed] == ["planning", "planning", "a cell is done", *3 * ["planning"]]
    silences = [after - before for (before, _), (after, _) in zip([(0, ""), *printed], printed, strict=False)]
    assert max(silences) <= 15


def test_the_words_are_those_of_the_moment_and_end_with_the_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FIRST", "SILENCE", "LOOK"):
        monkeypatch.setattr(heartbeat, name, 0.01)
    words = ["the first"]
    with heartbeat.doing(lambda: words[0]):
        time.sleep(0.1)
        words[0] = "the second"
        time.sleep(0.1)
    said = capsys.readouterr().out.splitlines()
    assert list(dict.fromkeys(said)) == ["the first", "the second"]
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_the_thread_is_silent_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback would be all that a user of `nftbench run small | head -1` sees."""

    def closed(line: str) -> None:
        raise BrokenPipeError

    died: list[object] = []
    monkeypatch.setattr("threading.excepthook", died.append)
    monkeypatch.setattr("typer.echo", closed)
    for name in ("FIRST", "SILENCE", "LOOK"):
        monkeypatch.setattr(heartbeat, name, 0.01)
    with heartbeat.still("planning"):
        time.sleep(0.1)
    assert died == []
