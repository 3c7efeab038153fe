"""The salt of a run: a text that the toy language's grammars depend on.

Without one in the suite, it is drawn at random for each folder of results. So nobody can tune a defense on the grammars
that it will be ranked on, and every later run in the folder uses the same ones. A salt that is given in the suite or
with `--salt`, or that `nftbench pack` has named, is public.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.planning.plan import Plan
    from nftbench.records.store import Store
    from nftbench.suites.schema import Suite

BITS = 128


@dataclass(frozen=True)
class Salt:
    """The salt that a plan's keys depend on."""

    text: str
    public: bool = False
    """It was known before this run."""
    drawn: bool = False
    """It was drawn just now, and no folder holds it yet."""


def plan_with_salt(
    suite: Suite, store: Store, plan: Callable[[Suite], Plan], *, keep: bool
) -> tuple[Plan, Salt | None]:
    """Plan a suite with the salt of its folder of results. Suites without grammars have none.

    Args:
        plan: makes the plan of a suite that has a salt.
        keep: write the salt into the folder if it has none yet. Nothing is written for a suite that cannot be run.

    Raises:
        NftbenchError: the folder was begun with another salt than the suite's, or by another version of nftbench, or
            the suite's model cannot be built.
    """
    salt = _find(suite, store)
    if salt is None:
        return plan(suite), None
    whole = plan(suite.model_copy(update={"salt": salt.text}))
    if keep and store.salt() is None:
        from nftbench.running import estimate

        estimate.parameters_of(whole.suite)
    if keep and store.keep_salt(salt.text) != salt.text:  # another run has begun the folder in the meantime
        return plan_with_salt(suite, store, plan, keep=keep)
    return whole, salt


def _find(suite: Suite, store: Store) -> Salt | None:
    before = store.earlier_manifest()
    if suite.corpus.source != "toy":
        return None
    named = before.salt if before is not None else None
    kept = store.salt() or named
    if suite.salt is not None and kept is not None and suite.salt != kept:
        raise NftbenchError(f"{store.results}: was begun with another salt; leave the salt out, or start a new folder")
    text = suite.salt or kept
    if text is None:
        return Salt(secrets.token_hex(BITS // 8), drawn=True)
    return Salt(text, public=suite.salt is not None or named is not None)
