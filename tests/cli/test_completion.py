"""Shell completion: what Tab offers at each place, quickly, and in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nftbench import suites
from nftbench.cli import main
from nftbench.planning import registry
from tests.project.test_packaging import HEAVY

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """`complete("run sm")`: what bash is offered for the last word after `nftbench`."""

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("_NFTBENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"nftbench {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0
        return capsys.readouterr().out.split()

    return complete


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("repr", ["reproduce"]),
        ("run smo", ["smoke", "smollm2", "smollm2-gpu", "smollm2-quick"]),
        ("audit release --suite wiki-", ["wiki-small"]),
        ("reproduce tr", ["trap2"]),
        ("list y", ["yardsticks"]),
        ("info pmp", ["pmp"]),
        ("info paper-tr", ["paper-trap2"]),
        ("run small --defenses pm", ["pmp"]),
        ("run small --defenses noise[scale=0.1],pm", ["noise[scale=0.1],pmp"]),
        ("run small --defenses noise[scale=0.1,pm", []),
        ("run small --defenses pmp,pm", []),
        ("plan small --attacks full_", ["full_data"]),
        ("plan small --tasks toy_topic", ["toy_topic", "toy_topic_object", "toy_topic_verb"]),
        ("compare a b --rows tra", ["trap2"]),
        ("compare a b --fail-on su", ["suspect"]),
        ("run small --fail-on", ["--fail-on-claims"]),
        ("run no-such-suite", []),
    ],
)
def test_words_are_completed_where_they_belong(complete: Complete, line: str, offered: list[str]) -> None:
    assert sorted(complete(line)) == offered


def test_an_empty_word_is_offered_everything(complete: Complete) -> None:
    assert complete("run ") == suites.names()
    assert complete("run small --attacks ") == list(registry.available("attacks"))


@pytest.mark.parametrize("verb", ["report", "report other", "pack", "baseline", "compare", "compare other"])
def test_folders_are_those_with_results(
    complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/small", "runs/smoke", "mine"):
        Path(folder).mkdir(parents=True)
        Path(folder, "manifest.json").touch()
    Path("runs/empty").mkdir()
    assert complete(f"{verb} ") == ["mine", "runs/small", "runs/smoke"]
    assert complete(f"{verb} runs/sma") == ["runs/small"]
    assert complete(f"{verb} {tmp_path}/runs") == [], "the shell completes other paths itself"


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import os, sys\n"
        "from nftbench.cli import main\n"
        "for line in ('report ', 'info ', 'run small --defenses ', 'run '):\n"
        "    os.environ.update(_NFTBENCH_COMPLETE='complete_bash', COMP_WORDS=f'nftbench {line}')\n"
        "    os.environ['COMP_CWORD'] = str(len(line.split(' ')))\n"
        "    try: main([])\n"
        "    except SystemExit: pass\n"
        f"print('loaded', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert "small" in done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash is installed")
def test_bash_runs_the_shown_script(tmp_path: Path) -> None:
    command = tmp_path / "nftbench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m nftbench "$@"\n')
    command.chmod(0o755)
    asked = f"""
    PATH={tmp_path}:$PATH
    eval "$(_NFTBENCH_COMPLETE=source_bash nftbench)"
    COMP_WORDS=(nftbench run small --defenses pmp,ran) COMP_CWORD=4
    $(complete -p nftbench | sed 's/.*-F \\([^ ]*\\).*/\\1/') nftbench
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pmp,random_mask"]
