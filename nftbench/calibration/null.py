"""How often the benchmark sees a defense where there is none.

There are twelve base seeds, each with a grammar of its own. Each grammar has two undefended models: `none`, and its
`twin` from another initialisation. A fake defense is made of some of the seeds: one model of each pair is called
the defended one, the other the reference. Real rows are paired in the same way, since a defense and its reference are
trained on the same text in the same order. Models of different grammars, paired at random, are judged beside them, for
a reader who trusts no pairing.

Every choice of seeds and of sides is judged by the code that judges a row. The choices overlap, since twelve seeds hold
only two disjoint sets of five. So the rate's interval is a delete-one jackknife over the base seeds (Arvesen 1969, for
U-statistics; Efron and Stein 1981 show that it tends to be too wide), with Student's t at one degree of freedom fewer
than seeds.

Symmetry alone bounds the rate, whatever the distribution of scores. The two models of a pair are exchangeable: given
the sizes of n differences, each of the 2^n patterns of signs is equally likely. The paired interval of differences x
lies above zero if the sum is positive and (Σx)² > c Σx², with c = t²/(t² + n - 1) · n. That is 2.71 of at most 3 for
three seeds, and 3.29 of at most 5 for five. With three seeds all differences must be positive: the rate is at most 1/8.
With five seeds at most one small difference may be negative: the rate is at most 2/32.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from nftbench.calibration import derived
from nftbench.calibration.proof import Finding, Run
from nftbench.scoring.grid import NONE
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, RANKED_SEEDS, Interval, gap_by_seed, mean, weakest
from nftbench.scoring.points import above_floor, final
from nftbench.scoring.table import Table, interval
from nftbench.scoring.utility import reached, scales, shares, usable
from nftbench.suites.schema import Suite

SEEDS = 12
LIMIT = 0.10
"""The false-positive rate that the benchmark may have."""
BOUNDS = {PRELIMINARY_SEEDS: 1 / 8, RANKED_SEEDS: 1 / 16}
"""The highest rate that symmetry allows, by the number of seeds of a row."""
MODELS = ("none", "twin")
SAMPLE = 20_000
"""If there are more choices than this, so many are drawn at random."""


class Fake(NamedTuple):
    """A fake defense: its attacked scores, the reference's, and the seeds that both are made of."""

    defended: tuple[float, ...]
    reference: tuple[float, ...]
    units: frozenset[int]


@dataclass(frozen=True)
class Rate:
    """How many fakes of one design were taken for defenses."""

    design: str
    seeds: int
    fakes: int
    effects: int
    interval: Interval
    """Of the share."""


def derive(suite: Suite, rows: Sequence[str], attacks: Sequence[str]) -> Suite:
    """Two undefended models on each of twelve seeds, under quick attacks."""
    few = derived.quick(suite, attacks)
    return derived.derive(
        suite,
        "null",
        defenses=MODELS,
        attacks=derived.distinct(["none"], few),
        seeds=derived.seeds(suite, SEEDS),
        ranking=derived.knowledge(few),
    )


def judge(suite: Suite, run: Run, *, sample: int = SAMPLE) -> Finding:
    """The rates of both designs, for rows of three and of five seeds.

    Args:
        sample: fakes across grammars that are drawn for each number of seeds.
    """
    failures = [run.missing] if run.missing else _same_weights(run)
    if failures:
        return Finding(run.suite.name, failures=tuple(failures))
    none, twin = (run.attacked(model) for model in MODELS)
    pairs = {seed: (none[seed], twin[seed]) for seed in sorted(none)}
    rates = [rate("pairs of one grammar", size, within(pairs, size)) for size in BOUNDS]
    rates += [rate("across grammars", size, across(none, size, sample)) for size in BOUNDS]
    failures = [
        f"{one.design}, {one.seeds} seeds: {100 * one.interval.value:.1f} % of the fakes are taken for defenses, "
        f"at most {100 * LIMIT:g} % may be"
        for one in rates
        if one.interval.value > LIMIT
    ]
    numbers = {
        "attacked": {"none": none, "twin": twin},
        "rates": [asdict(one) for one in rates],
    }
    tables = (_rates(rates), utilities(run), _seeds(pairs))
    return Finding(run.suite.name, tables, numbers, tuple(failures))


def _same_weights(run: Run) -> list[str]:
    hashes: dict[int, dict[str, str]] = {}
    for record in run.records:
        hashes.setdefault(record.seed, {})[record.defense] = record.release_sha256
    same = [seed for seed, found in sorted(hashes.items()) if len(found) > 1 and len({*found.values()}) == 1]
    return [f"seed {seed}: none and its twin have the same weights" for seed in same]


# ----------------------------------------------------------------------------------------------------------- designs


def within(pairs: Mapping[int, tuple[float, float]], size: int) -> Iterator[Fake]:
    """Every choice of `size` seeds, and in each of the model that plays the defended one."""
    for chosen in itertools.combinations(sorted(pairs), size):
        for sides in itertools.product((0, 1), repeat=size):
            picked = [(pairs[seed][side], pairs[seed][1 - side]) for seed, side in zip(chosen, sides, strict=True)]
            yield Fake(tuple(one for one, _ in picked), tuple(other for _, other in picked), frozenset(chosen))


def across(models: Mapping[int, float], size: int, sample: int) -> Iterator[Fake]:
    """`size` models against `size` others of other grammars, paired at random; a sample of all choices."""
    draw = random.Random(0)
    for _ in range(sample):
        chosen = draw.sample(sorted(models), 2 * size)
        defended, reference = (tuple(models[seed] for seed in half) for half in (chosen[:size], chosen[size:]))
        yield Fake(defended, reference, frozenset(chosen))


def rate(design: str, size: int, fakes: Iterable[Fake]) -> Rate:
    """The share of fakes with an effect: their excess suppression over the reference lies above zero."""
    counts: dict[int, list[int]] = {}
    total = [0, 0]
    for fake in fakes:
        effect = _excess(fake).low > 0
        for count in (total, *(counts.setdefault(unit, [0, 0]) for unit in fake.units)):
            count[0] += 1
            count[1] += effect
    share = total[1] / total[0]
    left_out = [(total[1] - hits) / (total[0] - count) for count, hits in counts.values()]
    return Rate(design, size, total[0], total[1], _jackknife(share, left_out, BOUNDS[size]))


def _excess(fake: Fake) -> Interval:
    """Excess suppression over the fake's one control, as for a row; the index of a score serves as its seed."""
    gap = gap_by_seed(*(dict(enumerate(scores)) for scores in (fake.reference, fake.defended)))
    assert gap is not None  # a fake has seeds
    return weakest([gap])


def _jackknife(share: float, left_out: Sequence[float], bound: float) -> Interval:
    """The share with its interval, from the shares without each unit; the interval ends at `bound`.

    With n units the jackknife variance is (n - 1)/n times the sum of squares. So the error is that of the mean of n
    values spread (n - 1) times as wide. If leaving out a unit never changes the share, the interval reaches from 0 to
    the bound.
    """
    count = len(left_out)
    centre = statistics.fmean(left_out)
    found = mean([share + (count - 1) * (centre - one) for one in left_out])
    spread = max(left_out) > min(left_out)
    low, high = (max(0.0, found.low), min(bound, found.high)) if spread else (0.0, bound)
    return Interval(share, min(low, share), max(high, share), count)


# ----------------------------------------------------------------------------------------------------------- showing


def _rates(rates: Sequence[Rate]) -> Table:
    return Table(
        f"Undefended models judged as though one of two were defended: at most {100 * LIMIT:g} % may be taken for it",
        ("design", "seeds", "fakes", "with an effect", "% [95 % interval]", "% that symmetry allows"),
        tuple(
            (one.design, f"{one.seeds}", f"{one.fakes}", f"{one.effects}", _percent(one.interval),
             f"{100 * BOUNDS[one.seeds]:g}")
            for one in rates
        ),
    )  # fmt: skip


def utilities(run: Run) -> Table:
    """What the twin keeps of the undefended model's utility, and how much of its spread the test documents explain.

    The errors of the two models are added as if they were independent, so the explained spread is an upper bound.
    """
    grid = run.grid()
    rows = []
    metrics = usable(scales(grid, NONE))
    for metric, by_seed in sorted(shares(reached(grid, MODELS[1], metrics), metrics).items()):
        none, twin = (
            {
                seed: final(record)
                for seed, (record,) in (grid.best_attacks(model, [metric], frozenset({NONE})) or {}).items()
            }
            for model in MODELS
        )
        kept = [100 * by_seed[seed] for seed in sorted(none)]
        errors = {seed: 100 * math.hypot(none[seed].stderr, twin[seed].stderr) for seed in none}
        chance = [100 * error / above_floor(none[seed]) for seed, error in errors.items()]
        by_chance = math.sqrt(statistics.fmean(error * error for error in chance))
        spread = statistics.stdev(kept)
        rows.append((metric, interval(mean(kept), digits=2), f"{spread:.2f}", f"{by_chance:.2f}"))
    return Table(
        "What the twin keeps of the undefended model's utility, %",
        ("metric", "kept", "spread over seeds", "of it by chance in documents, at most"),
        tuple(rows),
    )


def _seeds(pairs: Mapping[int, tuple[float, float]]) -> Table:
    gaps = [one - other for one, other in pairs.values()]
    rows = [
        (f"{seed}", f"{one:.2f}", f"{other:.2f}", f"{gap:.2f}")
        for (seed, (one, other)), gap in zip(pairs.items(), gaps, strict=True)
    ]
    return Table(
        "The undefended models after the strongest attack, points: mean over tasks",
        ("seed", *MODELS, "difference"),
        (*rows, ("mean", *(f"{statistics.fmean(column):.2f}" for column in zip(*pairs.values(), strict=True)),
                 interval(mean(gaps), digits=2))),
    )  # fmt: skip


def _percent(value: Interval) -> str:
    return interval(value, 100, digits=2)
