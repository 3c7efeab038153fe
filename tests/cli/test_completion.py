"""Shell completion: what Tab offers at each place, quickly, and in a real bash, zsh and fish."""

from __future__ import annotations

import os
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
Shell = Callable[[str, str], str]


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
        ("audit release --suite wiki-", ["wiki-gpu", "wiki-small"]),
        ("reproduce tr", ["trap2"]),
        ("list y", ["yardsticks"]),
        ("new at", ["attack"]),
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


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """`shell("zsh", script)`: what the script prints in a new home, where `nftbench` is a command."""
    command = tmp_path / "bin" / "nftbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m nftbench "$@"\n')
    command.chmod(0o755)
    (tmp_path / "home").mkdir()
    variables = {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "TERM": "dumb"}

    def shell(name: str, script: str) -> str:
        if not shutil.which(name):
            pytest.skip(f"no {name} is installed")
        asked = [name, "-c", script]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, env=variables, timeout=300)
        return done.stdout

    return shell


def test_bash_runs_the_shown_script(shell: Shell) -> None:
    asked = """
    eval "$(_NFTBENCH_COMPLETE=source_bash nftbench)"
    COMP_WORDS=(nftbench run small --defenses pmp,ran) COMP_CWORD=4
    $(complete -p nftbench | sed 's/.*-F \\([^ ]*\\).*/\\1/') nftbench
    echo "${COMPREPLY[@]}"
    """
    assert shell("bash", asked).split() == ["pmp,random_mask"]


def test_the_first_tab_of_an_installed_zsh_completes(shell: Shell) -> None:
    """In a terminal of its own. Had Tab offered nothing, the wait for the completed word would time out."""
    asked = r"""
    _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 nftbench --install-completion zsh > /dev/null
    zmodload zsh/zpty
    zpty -b terminal 'zsh -i'
    zpty -w terminal "PS1=; echo rea''dy"
    zpty -r -m terminal out '*ready*'
    zpty -w -n terminal $'nftbench run small --defenses noise[scale=0.1],pm\t'
    zpty -r -m terminal out '*,pmp*'
    zpty -d terminal
    echo completed
    """
    assert shell("zsh", asked) == "completed\n"


def test_an_installed_fish_completes(shell: Shell) -> None:
    asked = """
    _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 nftbench --install-completion fish > /dev/null
    fish -c 'complete -C "nftbench run small --defenses noise[scale=0.1],pm"; complete -C "nftbench run smo"'
    """
    offered = ["noise[scale=0.1],pmp", "smoke", "smollm2", "smollm2-gpu", "smollm2-quick"]
    assert shell("fish", asked).splitlines() == offered
