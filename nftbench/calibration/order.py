"""Whether one run orders defenses as another one does: rank correlations over the rows of both.

A suite on the toy language is worth what its order says about real models. Rows with equal specs are paired. So are two
defenses of one name if each run has no other row of that name left: their settings follow the model's size. The
undefended model is no pair, because its suppression is zero in both runs by definition.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.records.spec import Spec
from nftbench.scoring import Score
from nftbench.scoring.grid import knowledge_name
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.scores import Kind
from nftbench.scoring.table import Table, interval, short

LEAST = 4
"""Pairs of rows below which a correlation has no interval."""
DRAWS = 9999
"""Orders that are drawn for a p-value where there are more than so many."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of one quantity over pairs of rows."""

    quantity: str
    of: Literal["defenses", "all rows"]
    """Doses of trivial defenses are in order almost by themselves, so defenses are also taken alone."""
    rho: Interval
    """`count` is the number of pairs."""
    pairs: tuple[tuple[str, str], ...]


def judge(runs: Sequence[Run]) -> Finding:
    """Compare the orders of two runs.

    Raises:
        NftbenchError: not two runs, or no row of one is in the other.
    """
    if len(runs) != 2:
        raise NftbenchError("--proof order reads two runs: name both folders, each with --from")
    first, second = ({one.defense: one for one in run.board().scores if one.kind != "reference"} for run in runs)
    both = paired(*({row: one.kind for row, one in rows.items()} for rows in (first, second)))
    if not both:
        raise NftbenchError(
            f"{runs[0].suite.name} and {runs[1].suite.name} have no row in common, so their orders cannot be compared"
        )
    sides = [(first[one], second[other]) for one, other in both]
    found = [one for name, of in quantities(runs).items() for one in correlations(name, sides, of)]
    return Finding(
        f"{runs[0].suite.name}-order",
        (_correlations(found), _rows(runs, sides)),
        {"runs": [run.suite.name for run in runs], "correlations": [asdict(one) for one in found]},
        notes=(*(run.missing for run in runs if run.missing), *_alone(first, second, both), _attacks(runs)),
        verdict=False,
    )


def paired(first: Mapping[str, Kind], second: Mapping[str, Kind]) -> list[tuple[str, str]]:
    """The rows of both runs: those with equal specs, then defenses whose name occurs once among the others of each run.

    Two doses of a trivial defense are two defenses.
    """
    equal = [row for row in first if row in second]
    rest = [
        {row: Spec.parse(row).name for row, kind in rows.items() if row not in equal and kind == "defense"}
        for rows in (first, second)
    ]
    counts = [Counter(names.values()) for names in rest]
    once = {name for name in counts[0] if counts[0][name] == counts[1][name] == 1}
    other = {name: row for row, name in rest[1].items()}
    return [*((row, row) for row in equal), *((row, other[name]) for row, name in rest[0].items() if name in once)]


Quantity = Callable[[Score, int], Interval | None]
"""A quantity of a row, in the first run (0) or in the second one (1)."""


def quantities(runs: Sequence[Run]) -> dict[str, Quantity]:
    """Suppression at each ranking's own level of knowledge and for attackers with the release alone, and utility."""
    own, alone = [knowledge_name(run.suite.ranking) for run in runs], knowledge_name(())
    return {
        "suppression, ranking": lambda row, run: row.by_knowledge.suppression.get(own[run]),
        f"suppression, {alone}": lambda row, _: row.by_knowledge.suppression.get(alone),
        "utility kept": lambda row, _: in_percent(row.utility.retention) if row.utility.retention else None,
    }


def correlations(name: str, pairs: Sequence[tuple[Score, Score]], of: Quantity) -> list[Correlation]:
    """The rank correlations of a quantity over the pairs that have it in both runs: of defenses, and of all rows."""
    known = [pair for pair in pairs if of(pair[0], 0) and of(pair[1], 1)]
    defenses = [pair for pair in known if pair[0].kind == pair[1].kind == "defense"]
    groups: dict[Literal["defenses", "all rows"], list[tuple[Score, Score]]] = {"defenses": defenses}
    if len(known) > len(defenses):
        groups["all rows"] = known
    found = []
    for group, chosen in groups.items():
        sides = [[value.value for pair in chosen if (value := of(pair[at], at))] for at in (0, 1)]
        if (rho := spearman(*sides)) is not None:
            found.append(Correlation(name, group, rho, tuple((one.defense, other.defense) for one, other in chosen)))
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Spearman's rank correlation of pairs, with a 95 % interval and a one-sided p-value.

    p is the share of all orders of one side that correlate as highly, or of `DRAWS` drawn ones where there are more.
    None for fewer than `LEAST` pairs, or where one side has a single value.
    """
    from scipy import stats

    count = len(first)
    if count < LEAST or len({*first}) == 1 or len({*second}) == 1:
        return None
    own, other = (stats.zscore(stats.rankdata(values)) for values in (first, second))

    def statistic(values: Any, axis: int = -1) -> Any:
        """Pearson's correlation of the ranks, which is Spearman's of the values; of thousands of orders at once."""
        return (values * other).mean(axis)

    rho = float(stats.spearmanr(first, second).statistic)
    p = stats.permutation_test(
        (own,), statistic, permutation_type="pairings", alternative="greater", n_resamples=DRAWS, random_state=0
    ).pvalue
    return Interval(rho, *ends(rho, count), count, float(p))


def ends(rho: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation ρ of n pairs: tanh(artanh ρ ± 1.96 · √((1 + ρ²/2) / (n - 3))).

    From Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations".
    In artanh, ρ keeps half of its smallest step away from ±1: a perfect order of few rows would otherwise be certain.
    """
    most = 1 - 6 / (count * (count**2 - 1))
    middle = math.atanh(min(max(rho, -most), most))
    error = statistics.NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return min(rho, math.tanh(middle - error)), max(rho, math.tanh(middle + error))


# ----------------------------------------------------------------------------------------------------------- showing


def _correlations(found: Sequence[Correlation]) -> Table:
    rows = [(one.quantity, one.of, f"{one.rho.count}", interval(one.rho, digits=2), short(one.rho.p)) for one in found]
    return Table(
        "Rank correlation between the two runs, with 95 % intervals over rows",
        ("quantity", "of", "rows", "Spearman's ρ", "p, one-sided"),
        tuple(rows),
    )


def _rows(runs: Sequence[Run], sides: Sequence[tuple[Score, Score]]) -> Table:
    kinds = quantities(runs)
    header = ["row", *(f"{name}: {run.suite.name}" for name in kinds for run in runs)]
    rows = []
    for pair in sorted(sides, key=lambda pair: pair[0].defense):
        names = " / ".join(dict.fromkeys(one.defense for one in pair))
        rows.append((names, *(interval(of(pair[at], at)) for of in kinds.values() for at in (0, 1))))
    return Table("The rows of both, suppression in points and utility in percent", tuple(header), tuple(rows))


def _alone(first: Mapping[str, Score], second: Mapping[str, Score], both: Sequence[tuple[str, str]]) -> list[str]:
    """Which defenses are left out. Of the ladder's doses only equal ones are of use, so it is not asked about."""
    found = []
    for at, rows in enumerate((first, second)):
        taken = {pair[at] for pair in both}
        left = sorted(name for name, row in rows.items() if name not in taken and row.kind == "defense")
        found += [f"only in the {('first', 'second')[at]} run: {', '.join(left)}"] if left else []
    return found


def _attacks(runs: Sequence[Run]) -> str:
    each = [", ".join(sorted({cell.attack for cell in run.planned})) for run in runs]
    return f"attacks of {runs[0].suite.name}: {each[0]}; of {runs[1].suite.name}: {each[1]}"
