"""The utility badge, against intervals worked out by hand."""

from __future__ import annotations

import pytest

from nftbench.scoring.utility_badge import Badge, MetricUtility, badge


def metric(*row: float, reference: float = 90.0, floor: float = 50.0) -> MetricUtility:
    """With margin 0.1 a row must stay above 0.9 · 90 + 0.1 · 50 = 86."""
    seeds = range(len(row))
    return MetricUtility(
        dict(enumerate(row)), dict.fromkeys(seeds, (reference - 1, reference + 1)), dict.fromkeys(seeds, floor)
    )


# Three values with a standard deviation of 1 have a one-sided 95 % reach of 2.920 / √3 = 1.686.
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((86.7, 87.7, 88.7), "keeps"),  # mean 1.700 above 86
        ((86.6, 87.6, 88.6), "cannot tell"),  # 1.600 above
        ((83.4, 84.4, 85.4), "cannot tell"),  # 1.600 below
        ((83.3, 84.3, 85.3), "loses"),  # 1.700 below
        ((99.0,), "cannot tell"),
    ],
)
def test_a_metric_keeps_cannot_be_told_or_loses(row: tuple[float, ...], expected: Badge) -> None:
    assert badge([metric(*row)]) == expected


def test_every_metric_must_keep_and_one_is_enough_to_lose() -> None:
    good, unclear, bad = metric(89, 90, 91), metric(80, 90, 99), metric(70, 71, 72)
    assert badge([good, good]) == "keeps"
    assert badge([good, unclear]) == "cannot tell"
    assert badge([good, unclear, bad]) == "loses"
    assert badge([]) == "cannot tell"
