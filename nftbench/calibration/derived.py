"""What the derived suites of the proofs share: the suite's ladder, the attackers of its ladder, further base seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from nftbench.errors import NftbenchError
from nftbench.planning import facts
from nftbench.planning.specs import canonical
from nftbench.suites.schema import Suite


def derive(suite: Suite, proof: str, attacks: Sequence[str], **changes: Any) -> Suite:
    """The suite's model, language, budget, ladder and level of knowledge, with these attacks; `changes` are fields.

    The ladder is given its own attacks as far as they are among these, and else all of them.
    """
    present = {canonical("attacks", text) for text in attacks}
    own = tuple(text for text in suite.ladder_attacks if canonical("attacks", text) in present)
    bare = {"yardsticks": (), "claims": (), "benign": (), "attacks": tuple(attacks), "ladder_attacks": own}
    return suite.model_copy(update={"name": f"{suite.name}-{proof}", **bare, **changes})


def needs_ladder(suite: Suite, proof: str) -> None:
    """Refuse a suite in which nothing has a score.

    Raises:
        NftbenchError: the suite has no ladder.
    """
    if not suite.ladder:
        raise NftbenchError(
            f"--proof {proof}: {suite.name} has no ladder of trivial defenses, and the score is measured from one"
        )


def seeds(suite: Suite, least: int) -> tuple[int, ...]:
    """The suite's own base seeds, and the lowest others where it has fewer than so many."""
    others = (seed for seed in itertools.count() if seed not in suite.seeds)
    return (*suite.seeds, *itertools.islice(others, max(0, least - len(suite.seeds))))


def rows(*groups: Iterable[str]) -> tuple[str, ...]:
    """The undefended model and these defenses, each once and in canonical form."""
    return distinct(["none"], (str(canonical("defenses", row)) for group in groups for row in group))


def attackers(suite: Suite, asked: Sequence[str]) -> tuple[str, ...]:
    """The attacks that were asked for, or else those of the suite's ladder, with `none` and `scratch` before them.

    The ladder's attacks are a few of the strongest, at the ranking's level of knowledge.
    """
    return distinct(["none", "scratch"], chosen(asked, suite.ladder_attacks or suite.attacks))


def chosen(asked: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The attacks that were asked for, or else the proof's own, each once.

    Raises:
        NftbenchError: none of them trains every release without its secret, so there would be nothing to compare.
    """
    few = distinct(asked or own)
    attacks = map(facts.attack, few)
    if not any(one.trains and one.uses_release and "secret" not in one.knowledge for one in attacks):
        raise NftbenchError(f"{', '.join(few)}: a proof needs an attack that trains the release without its secret")
    return few


def distinct(*groups: Iterable[str]) -> tuple[str, ...]:
    """Specs of several lists, each once."""
    return tuple(dict.fromkeys(spec for group in groups for spec in group))
