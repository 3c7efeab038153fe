"""Which versions of a defense had results under a folder's salt, and which of them its board does not show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nftbench.records import manifest as manifests
from nftbench.records.manifest import Manifest, Version
from nftbench.records.merging import Source, merge
from nftbench.records.record import Record
from nftbench.records.versions import dropped, with_results
from tests.comparing.sides import HERE, PMP, manifest, records


def made(name: str = "mine", code: str = "1") -> list[Record]:
    """The records of `none`, `early_stop` and a defense with this code."""
    sources = {"sources": {"defense": code, "attack": "a", "task": "t"}}
    return [replace(one, key=f"{code} {one.key}") for one in records({name: PMP}, provenance={**HERE, **sources})]


def plan(found: Sequence[Record], **changes: object) -> Manifest:
    """Of a folder that drew its salt."""
    drawn = replace(manifest(found), salt=None, public_salt=False, added_defenses=("mine",))
    return replace(drawn, **changes)  # type: ignore[arg-type]


def after(now: Sequence[Record], *earlier: Record) -> Manifest:
    """The manifest of a folder that holds such earlier records."""
    return plan(now, versions=with_results(plan(now), [*now, *earlier]))


def test_other_code_of_an_added_defense_is_another_version() -> None:
    now, before = made(code="2"), made(code="1")
    assert dropped(after(now, *before), now) == {"mine": 1}
    assert dropped(after(now, *before, *made(code="0")), now) == {"mine": 2}
    assert dropped(after(now), now) == {}
    assert dropped(after(before), before) == {}


def test_other_settings_are_another_version_of_any_defense() -> None:
    for name in ("mine", "pmp"):
        now = made(f"{name}[radius=2]")
        assert dropped(after(now, *made(f"{name}[radius=1]")), now) == {name: 1}
        both = [*made(f"{name}[radius=1]"), *now]
        assert dropped(after(both), both) == {}, "the board shows them all"


def test_other_code_of_nftbenchs_own_defense_is_not() -> None:
    """It changes with nftbench, too."""
    now = made("pmp", code="2")
    assert dropped(after(now, *made("pmp", code="1")), now) == {}
    settings = [*made("pmp[radius=1]", code="1"), *made("pmp[radius=1]", code="2")]
    assert dropped(after(now, *settings), now) == {"pmp": 1}


@pytest.mark.parametrize("change", [{"status": "failed"}, {"suite": "another"}])
def test_without_a_result_in_the_suite_nothing_was_learned(change: dict[str, str]) -> None:
    now = made(code="2")
    earlier = [replace(one, **change) for one in made(code="1")]  # type: ignore[arg-type]
    assert dropped(after(now, *earlier), now) == {}


def test_grammars_that_were_public_from_the_start_were_never_fresh() -> None:
    now = made(code="2")
    found = after(now, *made(code="1"))
    assert dropped(replace(found, public_salt=True), now) == {}
    text = found.suite.corpus.model_copy(update={"source": "text"})
    assert dropped(replace(found, suite=found.suite.model_copy(update={"corpus": text})), now) == {}


def test_versions_outlive_their_records_and_a_merge() -> None:
    now, before = made(code="2"), made(code="1")
    later = after(now, *before)
    assert with_results(later, now) == later.versions
    assert Version("mine", "1") in later.versions
    ran = Source("a", later, tuple(now), "s")
    bare = Source("b", plan(now), tuple(now), "s")
    for folders in ([ran, bare], [bare, ran], [bare, Source("c", plan(now), (*now, *before), "s")]):
        merged = merge(folders)
        assert dropped(merged.manifest, merged.records) == {"mine": 1}


def test_a_manifest_of_before_has_no_versions() -> None:
    found = after(made())
    content = json.loads(manifests.dump(found))
    assert manifests.parsed(content, "x").versions == found.versions != ()
    del content["versions"]
    assert manifests.parsed(content, "x").versions == ()
