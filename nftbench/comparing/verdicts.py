"""The rules: from a difference to a verdict, from verdicts to the outcome of a comparison and its exit code."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, get_args

from nftbench.comparing.differences import Difference
from nftbench.scoring.intervals import PRELIMINARY_SEEDS

Verdict = Literal["regressed", "missing", "suspect", "improved", "held", "underpowered", "new", "incomparable"]
"""`regressed`: worse by the smallest drop that matters or more, and significantly. `missing`: BASE has the number and
NEW does not; it counts as regressed. `suspect`: worse by so much, but not significantly. `improved`: better by so much,
significantly. `held`: none of these, and a drop that matters would have been found with 80 % power. `underpowered`: it
would not, or there are fewer than three base seeds. `new`: only NEW has the number. `incomparable`: measured with
another ruler, or known on neither side."""
FailOn = Literal["regressed", "suspect", "never"]
WORSE: tuple[Verdict, ...] = ("regressed", "missing", "suspect")
"""The verdicts that may fail a gate."""
FAILING: Mapping[FailOn, tuple[Verdict, ...]] = {"regressed": WORSE[:2], "suspect": WORSE, "never": ()}
"""Those that do."""
ORDER: tuple[Verdict, ...] = get_args(Verdict)
"""The gravest first; the order of every report."""
JUDGED = {"regressed", "missing", "suspect", "improved", "held"}
"""The verdicts that say something about NEW."""
UNCHANGED = {"held", "underpowered"}
"""The verdicts that `--only-changed` hides."""
Outcome = Literal["regressed", "suspect", "passed", "nothing comparable"]
NOTHING_REGRESSED, REGRESSED, NOTHING_COMPARABLE = 0, 1, 3
"""Exit codes; 2 is bad input."""


def verdict(
    found: Difference, better: float, adjusted_p: float, detectable: float, smallest: float, alpha: float
) -> Verdict:
    """The verdict on one test.

    Args:
        found: the difference.
        better: how much better NEW is, in the metric's units; negative for a drop.
        adjusted_p: two-sided, after Holm's correction.
        detectable: the smallest drop that this test finds with 80 % power.
        smallest: the smallest drop that matters.
        alpha: the error rate of all tests together.
    """
    if found.seeds < PRELIMINARY_SEEDS:
        return "underpowered"
    large, significant = abs(better) >= smallest and better != 0, adjusted_p <= alpha
    if large and significant:
        return "regressed" if better < 0 else "improved"
    if large and better < 0:
        return "suspect"
    return "held" if detectable <= smallest or math.isclose(detectable, smallest) else "underpowered"


def outcome(verdicts: Collection[Verdict]) -> Outcome:
    """What all verdicts together say."""
    found = set(verdicts)
    if found & {"regressed", "missing"}:
        return "regressed"
    if "suspect" in found:
        return "suspect"
    return "passed" if found & JUDGED else "nothing comparable"


def exit_code(found: Outcome, fail_on: FailOn) -> int:
    """0 where nothing regressed or where nothing may fail, 1 on a regression, 3 where nothing could be judged."""
    if found == "nothing comparable":
        return NOTHING_REGRESSED if fail_on == "never" else NOTHING_COMPARABLE
    return REGRESSED if found in FAILING[fail_on] else NOTHING_REGRESSED
