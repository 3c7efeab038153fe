"""`nftbench new` writes plugins that run as they are, over nothing, and `nftbench check` finds them in order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nftbench.planning import registry
from nftbench.testing import check_attack, check_defense, check_task
from tests.cli.test_verbs import cells, records, write_suite

Call = Callable[..., tuple[int, str, str]]
CHECKS = {"defense": check_defense, "attack": check_attack, "task": check_task}
FILES = {"defense": "my_own.py", "attack": "my_own.py", "task": "my_own.yaml"}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_written_is_named_and_says_what_to_run_next(kind: str, call: Call) -> None:
    code, out, _ = call("new", kind, "my_own")
    assert code == 0
    file = FILES[kind]
    assert out.splitlines()[0] == file
    data = " --data data" if kind == "task" else ""
    assert f"  nftbench check {file}{data}\n" in out
    assert f"  nftbench run smoke --plugin {file}{data}" in out
    text = Path(file).read_text()
    assert f"my_{kind}" not in text
    assert "My own: " in text.splitlines()[0]
    with registry.added(file) as (found,):
        assert (found.kind, found.name) == (f"{kind}s", "my_own")
        assert found.about.startswith("My own: ")


def test_a_task_has_its_documents_beside_it(call: Call, cache: Path) -> None:
    call("new", "task", "moods")
    assert sorted(path.name for path in Path("data/moods").iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    lines = [line for path in Path("data/moods").iterdir() for line in path.read_text().splitlines()]
    assert len(set(lines)) == len(lines), "no document is in two splits"
    check_task(Path("moods.yaml"), architectures=["gpt2"], data=Path("data"))


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_what_is_written_keeps_the_contract(kind: str, call: Call, cache: Path) -> None:
    call("new", kind, "my_own")
    CHECKS[kind](Path(FILES[kind]), architectures=["gpt2"])  # type: ignore[operator]


def test_a_file_that_is_there_is_left_as_it_is(call: Call) -> None:
    call("new", "task", "my_own")
    Path("my_own.yaml").rename("elsewhere.yaml")
    Path("data/my_own/train.jsonl").write_text("mine\n")
    code, _, err = call("new", "task", "my_own")
    assert code == 2
    assert "is there already" in err
    assert not Path("my_own.yaml").exists(), "nothing is written beside what is there"
    assert Path("data/my_own/train.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("defence", "mine"), "did you mean 'defense'?"),
        (("defense", "MyDefense"), "such as 'my_defense'"),
        (("defense", "folder/mine.py"), "such as 'mine'"),
        (("defense", "../mine"), "such as 'mine'"),
        (("attack", "class"), "no word of Python"),
        (("attack", "2fast"), "begins with a letter"),
        (("attack", "full"), "nftbench has one of this name"),
        (("defense", "claim"), "its class would be Claim"),
        (("attack", "exception"), "its class would be Exception"),
        (("task", "json"), "Python has a module of this name"),
    ],
)
def test_a_bad_name_is_refused_with_help(words: tuple[str, str], said: str, call: Call, tmp_path: Path) -> None:
    code, _, err = call("new", *words)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_check_refuses_what_is_no_file_before_it_checks_another(call: Call) -> None:
    call("new", "defense", "my_own")
    code, out, err = call("check", "my_own.py", "absent.py")
    assert (code, out) == (2, "")
    assert "absent.py: no such file" in err


@pytest.mark.slow
def test_check_says_of_each_promise_whether_it_is_kept(call: Call) -> None:
    call("new", "defense", "my_own")
    call("new", "task", "moods")
    code, out, _ = call("check", "my_own.py[keep=0.5]", "moods.yaml", "--data", "data")
    assert code == 0
    assert "  kept    protect returns Protected\n" in out
    assert "  kept    every split has documents\n" in out
    assert "broken" not in out
    text = Path("my_own.py").read_text()
    Path("my_own.py").write_text(text.replace("return Protected(model)", "pass"))
    code, out, _ = call("check", "my_own.py")
    assert code == 1
    assert "  broken  protect returns Protected\n          it returned nothing: end it with" in out


def test_a_plugin_below_the_data_is_refused(call: Call, tmp_path: Path) -> None:
    """Its own process could not read it."""
    call("new", "defense", "my_own")
    code, _, err = call("plan", write_suite(tmp_path), "--plugin", "my_own.py", "--data", ".")
    assert code == 2
    assert "it lies under --data ., where no defense or attack can read; move it" in err
    code, out, _ = call("check", "my_own.py", "--data", ".")
    assert code == 1
    assert "  broken  `--plugin` takes the file\n" in out


@pytest.mark.slow
def test_what_is_written_takes_part_in_a_run(call: Call, tmp_path: Path) -> None:
    """All three together; the answer ends with a paragraph for the defense and one for the attack."""
    for kind, name in (("defense", "truncate"), ("attack", "largest"), ("task", "moods")):
        call("new", kind, name)
    suite = write_suite(tmp_path)
    plugins = [word for file in ("truncate.py", "largest.py", "moods.yaml") for word in ("--plugin", file)]
    code, out, err = call("run", suite, *plugins, "--data", "data", "--set", "tasks=[moods]", "--jobs", "1")
    assert code == 0, err
    assert {one.status for one in records().values()} == {"ok"}
    assert ("truncate", "largest", "moods", 0) in cells()
    assert "The added defense truncate. truncate has no rank: " in " ".join(out.split())
    assert "The added attack largest. " in " ".join(out.split())
    code, again, _ = call("report", "runs/tiny")
    assert "The added defense truncate." in again
    assert "What would strengthen the evidence: more base seeds: 1 of the 5" in " ".join(again.split())


def test_a_file_that_cannot_be_parsed_is_told_at_once_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, which must not wait for torch."""
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("x = 1\ndef f(:\n")
    Path("bad.yaml").write_text("task: mine\ntest_split: [a\n")
    words = "import sys; from nftbench.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    for name, expected in {"bad.py": "bad.py:2: this is not Python: invalid syntax", "bad.yaml": "line 3"}.items():
        ended = subprocess.run([sys.executable, "-c", words, "check", name], capture_output=True, text=True, check=True)
        assert ended.stdout == "2 False\n"
        assert expected in ended.stderr
        assert ended.stderr.count("\n") == 1
