"""What a defense calls itself is plain data in the manifest, in a form that imitates nothing and needs no escaping."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nftbench.cli.execution import rank
from nftbench.errors import NftbenchError
from nftbench.planning import facts, registry
from nftbench.planning.facts import LABEL
from nftbench.planning.plan import Plan, plan
from nftbench.records import manifest as manifests
from nftbench.records.manifest import PlannedCell
from nftbench.report.labels import of
from nftbench.testing import tiny_suite
from tests.factories import suite, sweep

WriteFile = Callable[[str, str], Path]
DEFENSE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "posttrain"
    label: ClassVar = {label!r}

    def protect(self, model, context):
        return Protected(model)
"""


def planned(plugin: WriteFile, label: object) -> Plan:
    plugin("mine", DEFENSE.format(label=label))
    return plan(tiny_suite(defenses=["none", "mine"]))


def test_the_label_comes_with_the_manifest_to_the_reports(plugin: WriteFile, tmp_path: Path) -> None:
    found = planned(plugin, "Low-rank lock").manifest()
    assert (found.labels, found.added_defenses) == ({"mine": "Low-rank lock"}, ("mine",))
    (tmp_path / "manifest.json").write_text(manifests.dump(found))
    again = manifests.read(tmp_path / "manifest.json")
    assert again == found
    records = {one.key: one for one in [*suite(), *sweep("mine", (0.6,) * 5)]}
    cells = tuple(PlannedCell(one.defense, one.attack, one.task, one.seed, key) for key, one in records.items())
    board = rank(records, replace(again, cells=cells))
    assert of(board)["mine"] == "Low-rank lock"
    assert board.added_defenses == ("mine",)


def test_a_manifest_of_before_has_no_labels(plugin: WriteFile, tmp_path: Path) -> None:
    content = json.loads(manifests.dump(planned(plugin, None).manifest()))
    assert content.pop("labels") == {}
    del content["added_defenses"]
    assert manifests.parsed(content, "old").labels == {}


@pytest.mark.parametrize("label", ["PMP", "Low-rank lock", "Trap 2.0 (small)", "A+B", "x" * 40])
def test_a_plain_label_is_taken(label: str, plugin: WriteFile) -> None:
    plugin("mine", DEFENSE.format(label=label))
    facts.ask_here("defenses", registry.create("defenses", "mine"))


@pytest.mark.parametrize(
    "label",
    ["", " ", "x" * 41, "a\nb", "<b>", "a|b", "a · b", "РМР", "a  b", " a", "a ", "a_b*", "a`b", "a\u202eb", "a\n", 3],
)
def test_another_label_is_refused(label: object, plugin: WriteFile) -> None:
    plugin("mine", DEFENSE.format(label=label))
    with pytest.raises(NftbenchError, match=r"label: (must be a string|.* is no label)"):
        facts.ask_here("defenses", registry.create("defenses", "mine") if label != 3 else _unchecked(plugin))


def _unchecked(plugin: WriteFile) -> object:
    """A defense whose label is a number; creating it by its name would refuse it already."""
    return registry.imported(registry.find("defenses", "mine"))()


def test_a_label_is_never_slow_to_refuse() -> None:
    assert LABEL.fullmatch("a" * 100_000 + "!") is None
