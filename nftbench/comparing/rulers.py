"""Whether two runs measured with the same ruler: settings, versions of the core's areas and of libraries.

Other base weights, another salt or another processor are draws, as seeds are, and never make runs incomparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nftbench.comparing.sides import Board, Recorded, Side
from nftbench.errors import shortened
from nftbench.records.manifest import Manifest
from nftbench.scoring.grid import knowledge_name
from nftbench.suites.differences import differing

SECTIONS = ("model", "corpus", "pretraining", "budget", "ranking")
"""The settings of a suite on which every number depends."""
MOST = 4
"""Settings that differ and are named. Two suites differ in dozens, and every line of a comparison repeats them."""


def differences(base: Side, new: Side) -> list[str]:
    """Why no number of these two sides compares, in words; empty where they do."""
    if isinstance(base, Recorded) and isinstance(new, Recorded):
        found = [*_settings(base.manifest, new.manifest), *_versions(base, new)]
    else:
        found = [f"suite {base.suite} and {new.suite}"] if base.suite != new.suite else []
        one, other = (_ranking(side) for side in (base, new))
        found += [f"ranking {one} and {other}"] if one != other else []
    return found


def ladder_difference(base: Side, new: Side) -> str | None:
    """Why the excess of these two sides does not compare: it is measured from other trivial defenses."""
    one, other = (_ladder(side) for side in (base, new))
    return "other ladders of trivial defenses" if one != other else None


def same_grammars(base: Side, new: Side) -> bool:
    """Whether a base seed has the same grammar of the toy language on both sides: the same salt, known on both."""
    if not (isinstance(base, Recorded) and isinstance(new, Recorded)):
        return False
    one, other = base.manifest, new.manifest
    return one.salt is not None and (one.salt, one.suite.corpus) == (other.salt, other.suite.corpus)


def notes(base: Side, new: Side) -> Iterator[str]:
    """What the reader has to know of the two sides, and what does not decide anything."""
    for side in (base, new):
        if isinstance(side, Board):
            yield (
                f"{side.path} names no settings, versions or base weights: it is compared unpaired, as if they agreed"
            )
    if base.origin.processors != new.origin.processors and base.origin.processors and new.origin.processors:
        yield f"other processors: {', '.join(base.origin.processors)} and {', '.join(new.origin.processors)}"
    if base.suite != new.suite:
        yield f"the suites are named {base.suite} and {new.suite}"


def _settings(base: Manifest, new: Manifest) -> list[str]:
    one, other = (manifest.suite.model_dump(mode="json", include=set(SECTIONS)) for manifest in (base, new))
    keys = list(differing(one, other))
    found = [f"other settings: {shortened(keys, MOST)}"] if keys else []
    return found + ([f"--limit {base.limit} and {new.limit}"] if base.limit != new.limit else [])


def _versions(base: Recorded, new: Recorded) -> list[str]:
    found = []
    for name in sorted(base.origin.areas.keys() & new.origin.areas.keys()):
        one, other = (side.origin.areas[name] for side in (base, new))
        if one != other:
            found.append(f"other core code: {name} {', '.join(one)} and {', '.join(other)}")
    for name in sorted((base.origin.versions.keys() & new.origin.versions.keys()) - {"nftbench", "python"}):
        one, other = (tuple(sorted({_major(text) for text in side.origin.versions[name]})) for side in (base, new))
        if one != other:
            found.append(f"other major versions: {name} {', '.join(one)} and {', '.join(other)}")
    return found


def _major(version: str) -> str:
    """`2` of 2.13.0; `0.21` of 0.21.2, since a version below 1 breaks with its second number."""
    first, _, rest = version.partition(".")
    return f"0.{rest.partition('.')[0]}" if first == "0" else first


def _ranking(side: Side) -> Any:
    return side.ranking if isinstance(side, Board) else knowledge_name(side.manifest.suite.ranking)


def _ladder(side: Side) -> Any:
    if isinstance(side, Board):
        return side.ladder
    return {name: family.doses for name, family in side.manifest.ladder.items()}
