"""The documents are true: they name every plugin, their commands parse, examples run, links and numbers are right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from nftbench import contract, suites
from nftbench.cli import app, main
from nftbench.contract import AttackerContext, Inspection, OwnerContext, TaskContext
from nftbench.planning import registry
from nftbench.scoring import flags, table
from nftbench.scoring.intervals import Interval
from nftbench.testing import check_attack, check_defense, check_task, check_yardstick
from tests import reference
from tests.pages import rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("results/*/*.md")]
VERBS: Any = typer.main.get_command(app)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(    )?(nftbench|make|python) \w|`(nftbench|make|python) [^`]+`", re.MULTILINE)


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(page: str | Path, language: str = "") -> list[str]:
    """The code blocks of a page in one language; those that name none are commands."""
    return [code for name, code in BLOCK.findall(read(page)) if name == language]


def documentation() -> set[str]:
    """Every word that stands as code in README.md or docs/."""
    text = "\n".join(read(page) for page in PAGES if page.parent in (ROOT, ROOT / "docs"))
    spans = [*re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)), *(code for _, code in BLOCK.findall(text))]
    return {word for span in spans for word in re.findall(r"-*\w[\w-]*", span)}


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page):
            for line in block.splitlines():
                if line.startswith("nftbench "):
                    yield page.name, shlex.split(line)[1:]


# ----------------------------------------------------------------------------------------------------- what there is


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_plugin_is_named(kind: registry.Kind) -> None:
    own = {name for name, plugin in registry.available(kind).items() if plugin.origin == "nftbench"}
    assert own <= documentation()


def test_every_suite_is_named() -> None:
    assert set(suites.names()) <= documentation()


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_made_from_the_code_are_current(page: Path) -> None:
    assert read(page) == reference.filled(read(page)), "run `make tables`"


def test_every_table_made_from_the_code_is_on_one_page() -> None:
    names = [name for page in reference.PAGES for name in reference.names(read(page))]
    assert sorted(names) == sorted(reference.TABLES)


def test_every_flag_is_named_with_its_severity() -> None:
    raised = {check.name: check.severity for check in flags.CHECKS if "defense" in check.kinds}
    rows = dict(re.findall(r"^\| `(\w+)` \| (unrank|warn|note) \|", read("docs/protocol.md"), re.MULTILINE))
    assert rows == raised


@pytest.mark.parametrize("protocol", [OwnerContext, AttackerContext, TaskContext, Inspection])
def test_everything_that_a_context_offers_is_named(protocol: type[Any]) -> None:
    names = {name for name in vars(protocol) if not name.startswith("_")}
    _, _, text = read("docs/plugins.md").partition(f"`{protocol.__name__}` offers")
    table = text.split("\n\n")[1]
    assert names == set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))


def test_the_file_tree_is_the_tree() -> None:
    named = set(re.findall(r"^  (\w+(?:\.py|/))", read("docs/architecture.md"), re.MULTILINE))
    present = {file.name for file in (ROOT / "nftbench").glob("*.py")} - {"__main__.py"}
    present |= {f"{file.parent.name}/" for file in (ROOT / "nftbench").glob("*/__init__.py")}
    assert named == present


# ----------------------------------------------------------------------------------------------- commands and examples


@pytest.mark.parametrize(
    ("page", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_parse(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for option, value in itertools.pairwise(words):
        if option == "--data":
            (tmp_path / value).mkdir(parents=True, exist_ok=True)
    for folder in words[1 : words.index("--out")] if words[0] == "merge" else ():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with VERBS.make_context("nftbench", list(words), resilient_parsing=words[0].startswith("-")) as group:
        name, verb, rest = VERBS.resolve_command(group, words)
        context = verb.make_context(name, rest, parent=group)
    wanted = context.params.get("suite")
    if wanted is not None and not wanted.endswith(".yaml"):
        suites.read(wanted, context.params.get("changes") or ())


def test_the_readme_shows_commands() -> None:
    assert len([page for page, _ in commands() if page == "README.md"]) >= 5


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    spoken = {name for page in PAGES for name in re.findall(r"`make\s([\w-]+)", read(page))}
    spoken |= {
        line[5:] for page in PAGES for block in blocks(page) for line in block.splitlines() if line[:5] == "make "
    }
    assert spoken <= targets


def test_the_defense_in_the_text_keeps_its_promises(example: Any) -> None:
    code = blocks("docs/plugins.md", "python")[1]
    assert len(code.splitlines()) <= 35
    check_defense(example(code), architectures=("gpt2",))


@pytest.mark.parametrize(("kind", "name", "index"), [("defense", "truncate", 1), ("attack", "largest", 2)])
def test_the_text_shows_what_new_writes(
    kind: str, name: str, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", kind, name]) == 0
    assert Path(f"{name}.py").read_text(encoding="utf-8") == blocks("docs/plugins.md", "python")[index]


@pytest.mark.slow
def test_the_attack_in_the_text_keeps_its_promises(example: Any) -> None:
    check_attack(example(blocks("docs/plugins.md", "python")[2]), architectures=("gpt2",))


def test_the_yardstick_in_the_text_keeps_its_promises(example: Any) -> None:
    check_yardstick(example(blocks("docs/plugins.md", "python")[3]), architectures=("gpt2",))


def test_the_task_in_the_text_keeps_its_promises(example: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "reviews"
    folder.mkdir(parents=True)
    rows = "".join(json.dumps({"text": f"film {number}", "label": number % 2}) + "\n" for number in range(40))
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(rows)
    check_task(example(blocks("docs/plugins.md", "yaml")[0], ".yaml"), architectures=("gpt2",), data=tmp_path / "data")


@pytest.fixture
def example(tmp_path: Path, added: Any, cache: Path) -> Any:
    """`example(code)`: the name of a plugin with this code, known as with --plugin until the test ends."""

    def write(code: str, suffix: str = ".py") -> str:
        path = tmp_path / f"example{suffix}"
        path.write_text(code, encoding="utf-8")
        return str(added(path))

    return write


# ------------------------------------------------------------------------------------------------------ links, tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(page)):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_in_tables_have_their_command(page: Path) -> None:
    """Measured numbers stand under a heading, or for a suite's results on a page, with the command that made them."""
    whole = page.parent.parent.name == "results"
    for section in [read(page)] if whole else re.split(r"^## ", read(page), flags=re.MULTILINE):
        cells = [cell for line in section.splitlines() if line.startswith("|") for cell in line.split("|")]
        if any(re.match(r"\s*[-<>≤≥]?\s*\d+\.\d", cell) for cell in cells):
            assert COMMAND.search(section), section.split("\n", 1)[0]


# ------------------------------------------------------------------------------------------- numbers and their records

SPOKEN = {
    "pmp[complement=released,discovery_steps=200,radius=0.02]": "pmp[complement=released,…]",
    "pmp[discovery_steps=200]": "pmp",
    "dlr_lock[module_steps=200,joint_steps=100]": "dlr_lock",
    "dlr_lock[depth=1,module_steps=200,joint_steps=100]": "dlr_lock[depth=1]",
    "trap2[task=toy_topic,strength=0.1,learning_rate=0.003,batch=32]": "trap2",
    "condition_number[harmful=toy_topic,lambda_ill=10,lambda_well=1,balanced=true,learning_rate=0.001,epochs=40]": (
        "condition_number"
    ),
    "early_stop": "early_stop[fraction=0.5]",
    "oracle": "oracle[strength=0.5]",
}
"""What the text calls a row, where it does not write what the records do: they leave out defaults, it the rest."""

OUTCOMES = ("holds", "does not hold", "not distinguishable", "measured")


def spoken(row: str) -> str:
    return f"`{SPOKEN.get(row, row)}`"


def published(path: str) -> Any:
    return json.loads(read(f"results/{path}"))


def interval(value: dict[str, Any] | None, scale: float = 1) -> str:
    return table.interval(Interval(**value) if value else None, scale)


def test_the_claims_in_the_text_are_counted_as_in_the_records() -> None:
    made: dict[str, list[Any]] = {}
    for path in (ROOT / "results").glob("paper-*/leaderboard.json"):
        claims = published(f"{path.parent.name}/leaderboard.json")["claims"]
        outcomes = Counter(claim["outcome"] for claim in claims)
        assert outcomes.keys() <= set(OUTCOMES)
        counts = {claim["measured"]["count"] for claim in claims}
        made[path.parent.name] = [counts, *(outcomes[outcome] for outcome in OUTCOMES)]
    shown: dict[str, list[Any]] = {}
    for name, seeds, _, *verdicts, link in rows(read("docs/reproduction.md"), "All claims"):
        suite = f"paper-{name.strip('`')}"
        assert f"(../results/{suite}/leaderboard.md#claims)" in link
        shown[suite] = [{int(seeds)}, *map(int, verdicts)]
    assert shown == made


@pytest.mark.parametrize("cls", [contract.Outcome, contract.Model, contract.Corpus])
def test_the_guide_to_plugins_names_every_field(cls: Any) -> None:
    page = read("docs/plugins.md")
    assert [one.name for one in dataclasses.fields(cls) if f"`{one.name}`" not in page] == []


def test_scores_in_the_readme_are_those_of_the_board() -> None:
    made = []
    for one in published("standard/leaderboard.json")["scores"]:
        rank = "{} [{}–{}]".format(one["rank"], *one["ranks"].values()) if one["rank"] else "–"
        name = spoken(one["defense"]) + " (trivial)" * (one["kind"] == "trivial")
        kept = f"{interval(one['utility_percent'])}, {one['badge']}"
        made.append([rank, name, interval(one["excess"]), interval(one["suppression"]), kept, one["verdict"] or "–"])
    shown = [[*cells, claim.split(",")[0]] for *cells, claim in rows(read("README.md"), "The ranking")]
    assert len(shown) == 9
    assert [row for row in shown if row not in made] == []


def unsaid(heading: str, numbers: Iterable[str]) -> list[str]:
    """Those numbers that a section of docs/validity.md does not hold."""
    section = " ".join(read("docs/validity.md").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].split())
    return [number for number in numbers if number not in section]


def proved(proof: str, key: str) -> Any:
    """A part of a published proof; skipped while the results are older than what the proof says now."""
    found = published(f"small-{proof}/{proof}.json")
    if key not in found:
        pytest.skip(f"results/small-{proof} is to be made again: nftbench calibrate small --proof {proof}")
    return found[key]


def test_the_false_positives_are_those_of_the_null() -> None:
    shares = {(one["what"], one["seeds"]): one["interval"] for one in proved("null", "shares")}
    found = [shares["false positives", 5], shares["ranks of equal rows are covered", 5]]
    numbers = [
        "{:.2f} % [{:.2f}, {:.2f}]".format(*(100 * one[end] for end in ("value", "low", "high"))) for one in found
    ]
    assert unsaid("Null: undefended models", numbers) == []


def test_the_doses_are_those_of_the_proof() -> None:
    doses = proved("dose", "doses")
    if "family" not in doses[0]:
        pytest.skip("results/small-dose is to be made again: nftbench calibrate small --proof dose")
    nearest = max(doses, key=lambda one: one["excess"]["low"])
    numbers = [f"{len(doses)} models", spoken(nearest["row"]), interval(nearest["excess"])]
    assert unsaid("Dose: less of a model", numbers) == []


def test_the_shams_are_those_of_the_proof() -> None:
    shams = proved("shams", "shams")
    ranked = [one for one in shams if one["standing"] == "ranked"]
    if not ranked:
        pytest.skip("results/small-shams is to be made again: nftbench calibrate small --proof shams")
    best = max(ranked, key=lambda one: one["excess"]["low"])
    unbroken = [spoken(one["row"]) for one in shams if not one["breakers"]]
    numbers = [f"{len(ranked)} of {len(shams)} shams", spoken(best["row"]), interval(best["excess"]), *unbroken]
    assert unsaid("Shams: what only looks protected", numbers) == []


def test_the_strengths_of_the_oracle_are_those_of_the_proof() -> None:
    grades = proved("oracle", "grades")
    if "badge" not in grades[0]:
        pytest.skip("results/small-oracle is to be made again: nftbench calibrate small --proof oracle")
    assert unsaid("Oracle: a defense that works", [interval(one["excess"]) for one in grades]) == []


def test_the_smallest_effects_are_those_of_the_proof() -> None:
    proved("power", "power_of")
    smallest = proved("power", "smallest")
    numbers = [f"three seeds find {smallest['3']:.1f} points", f"five seeds {smallest['5']:.1f}"]
    assert unsaid("Power: the smallest effect that is found", numbers) == []


def test_the_masks_are_those_of_the_records() -> None:
    found = {
        one["attack"]: one["metrics"]["roc_auc"]
        for one in published("mask-recovery/leaderboard.json")["recovered"]
        if spoken(one["defense"]) == "`pmp`"
    }
    names = ("magnitude", "likelihood", "gradient", "fisher", "displacement", "early_bird", "combination")
    shown = [found[f"mask_recovery[estimator={name}]"] for name in names] + [found["mask_recovery"]]
    numbers = ["{:.3f} [{:.3f}, {:.3f}]".format(*(one[end] for end in ("value", "low", "high"))) for one in shown]
    assert unsaid("Masks: what finds them", numbers) == []
