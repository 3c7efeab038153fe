"""What the derived suites of the proofs share: seeds, cheap attacks, trivial rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.specs import canonical
from nftbench.suites.schema import Suite

UTILITY_BAR = 0.95
"""The share of base utility that a proof asks of a row."""
QUICK = ("full", "lora", "head", "linear_probe")
"""Cheap attacks that know little but the release: enough for proofs that need no special attacker."""


def derive(suite: Suite, proof: str, **changes: Any) -> Suite:
    """The suite's model, language and budget, without claims, yardsticks and ladder; `changes` are fields."""
    bare = {"yardsticks": (), "claims": (), "ladder": {}, "ladder_attacks": (), "initialisations": 1}
    return suite.model_copy(update={"name": f"{suite.name}-{proof}", **bare, **changes})


def with_ladder(suite: Suite, attacks: Sequence[str]) -> Mapping[str, Any]:
    """The fields of the suite's ladder, for a derived suite with these attacks."""
    present = {canonical("attacks", text) for text in attacks}
    kept = tuple(text for text in suite.ladder_attacks if canonical("attacks", text) in present)
    return {"ladder": suite.ladder, "ladder_attacks": kept, "initialisations": suite.initialisations}


def seeds(suite: Suite, count: int) -> tuple[int, ...]:
    """So many base seeds: the suite's own first, then the lowest others."""
    more = (seed for seed in range(max(suite.seeds) + count + 1) if seed not in suite.seeds)
    return tuple([*suite.seeds, *more][:count])


def chosen(asked: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The attacks that were asked for, or else the proof's own, each once.

    Raises:
        NftbenchError: none of them trains every release without its secret, so there would be nothing to compare.
    """
    few = distinct(asked or own)
    plugins = [registry.create("attacks", text) for text in few]
    if not any(one.trains and one.uses_release and "secret" not in one.knowledge for one in plugins):
        raise NftbenchError(f"{', '.join(few)}: a proof needs an attack that trains the release without its secret")
    return few


def quick(suite: Suite, asked: Sequence[str]) -> tuple[str, ...]:
    """The attacks that were asked for, else the quick ones that the suite lists, else all quick ones."""
    return chosen(asked, tuple(name for name in QUICK if name in suite.attacks) or QUICK)


def knowledge(attacks: Iterable[str]) -> frozenset[str]:
    """What these attacks know together. A claim about attackers who know more would stay untested."""
    return frozenset(known for text in attacks for known in registry.create("attacks", text).knowledge)


def trivial(suite: Suite) -> tuple[str, ...]:
    """The suite's trivial defenses, which every claim must beat."""
    return tuple(
        str(canonical("defenses", text)) for text in suite.defenses if registry.create("defenses", text).trivial
    )


def distinct(*groups: Iterable[str]) -> tuple[str, ...]:
    """Specs of several lists, each once."""
    return tuple(dict.fromkeys(spec for group in groups for spec in group))
