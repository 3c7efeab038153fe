"""Compares two sides: one line with a verdict for each row and metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nftbench.comparing import metrics as known, rulers, samples
from nftbench.comparing.differences import Difference, between
from nftbench.comparing.metrics import DEFAULT, UTILITY, Role, Unit
from nftbench.comparing.samples import Rows, RowSamples, Sample
from nftbench.comparing.sides import Board, Recorded, Side
from nftbench.comparing.verdicts import ORDER, FailOn, Outcome, Verdict, exit_code, outcome, verdict
from nftbench.errors import NftbenchError, suggest
from nftbench.records.origin import Origin
from nftbench.scoring.intervals import Interval, holm

ALPHA = 0.02
"""Two-sided, over all tests together. Half of it is on the side of a drop: at most 1 % of comparisons of equal runs
call a row regressed."""


@dataclass(frozen=True)
class Settings:
    """How to compare."""

    role: Role = "defense"
    metrics: tuple[str, ...] = ()
    """Empty for the default ones of the role."""
    rows: tuple[str, ...] = ()
    """Empty for all rows that are no controls. A name without brackets means all its variants."""
    min_drop: tuple[str, ...] = ()
    """As on the command line: `5`, `seconds=30`."""
    alpha: float = ALPHA
    fail_on: FailOn = "regressed"
    name: str = ""
    """What tells this comparison from others of the same suite."""


@dataclass(frozen=True)
class Line:
    """One row and metric."""

    row: str
    metric: str
    unit: Unit
    """Of the difference: points or percent."""
    verdict: Verdict
    why: str = ""
    base: Interval | None = None
    new: Interval | None = None
    """In points; in percent metrics 100 · ln(value)."""
    difference: Interval | None = None
    """NEW less BASE, with its 95 % interval."""
    better: float | None = None
    """How much better NEW is for the author of the rows, in the same unit; negative for a drop."""
    min_drop: float = 0.0
    p: float | None = None
    """Two-sided."""
    p_holm: float | None = None
    detectable: float | None = None
    """The smallest drop that this test finds with 80 % power; None where it finds none."""
    paired: bool = False

    @property
    def moved(self) -> bool:
        """Whether the change is at least the smallest that matters, whatever a test says of it."""
        return bool(self.better) and abs(self.better or 0.0) >= self.min_drop


@dataclass(frozen=True)
class SideFacts:
    """Where one side comes from."""

    path: str
    suite: str
    origin: Origin


@dataclass(frozen=True)
class Comparison:
    """All lines, the gravest first, and what they say together."""

    base: SideFacts
    new: SideFacts
    settings: Settings
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Short names that the suites give to rows, by specification."""
    own_labels: Mapping[str, str] = field(default_factory=dict)
    """Short names that defenses give to themselves, by specification."""

    @property
    def suite(self) -> str:
        return self.new.suite

    @property
    def outcome(self) -> Outcome:
        """The worst that any line says."""
        return outcome([line.verdict for line in self.lines])

    @property
    def exit_code(self) -> int:
        return exit_code(self.outcome, self.settings.fail_on)

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many lines have each verdict that occurs."""
        found = Counter(line.verdict for line in self.lines)
        return {name: found[name] for name in ORDER if found[name]}

    @property
    def detectable(self) -> dict[str, float]:
        """By metric: the drop that all its tests would find with 80 % power; infinite where one finds none.

        A difference without any spread, as between equal numbers, says nothing of that and is left out.
        """
        found: dict[str, float] = {}
        for line in self.lines:
            if line.difference is not None and line.detectable != 0:
                own = math.inf if line.detectable is None else line.detectable
                found[line.metric] = max(found.get(line.metric, 0.0), own)
        return found


def compare(base: Side, new: Side, settings: Settings) -> Comparison:
    """Every row and metric that is asked for.

    Raises:
        NftbenchError: a metric or row is unknown, or alpha is no probability.
    """
    if not 0 < settings.alpha < 1:
        raise NftbenchError(f"--alpha {settings.alpha:g}: write a probability between 0 and 1")
    drops = known.drops(settings.role, settings.min_drop)
    asked = settings.metrics or DEFAULT[settings.role]
    for name in asked:
        known.metric(settings.role, name)
    first, second, notes = _rows(base, new, settings.role)
    _check_utility([*asked, *drops], (base, new), (*first.values(), *second.values()))
    names = _chosen(first, second, settings)
    lines = list(_lines(first, second, names, asked, settings, drops, _Rulers.of(base, new)))
    facts = [SideFacts(side.path, side.suite, side.origin) for side in (base, new)]
    if base.path == new.path:
        notes = [
            f"BASE and NEW are both {base.path}, so nothing can differ; name the run before the change first",
            *notes,
        ]
    manifests = [side.manifest for side in (base, new) if isinstance(side, Recorded)]
    return Comparison(
        facts[0],
        facts[1],
        settings,
        tuple(_judged(lines, settings.alpha)),
        (*rulers.notes(base, new), *notes),
        {row: label for one in manifests for row, label in one.suite.labels.items()},
        {row: label for one in manifests for row, label in one.labels.items()},
    )


@dataclass(frozen=True)
class _Rulers:
    """Why numbers do not compare, and whether seeds do."""

    everything: str | None
    excess: str | None
    on_one_machine: str | None
    same_grammars: bool

    @classmethod
    def of(cls, base: Side, new: Side) -> _Rulers:
        same = base.origin.processors == new.origin.processors and base.origin.processors
        return cls(
            "; ".join(rulers.differences(base, new)) or None,
            rulers.ladder_difference(base, new),
            None if same else "another or an unknown processor",
            rulers.same_grammars(base, new),
        )

    def against(self, role: Role, name: str) -> str | None:
        metric = known.metric(role, name)
        return (
            self.everything
            or (self.excess if name == "excess" else None)
            or (self.on_one_machine if metric.on_one_machine else None)
        )


def _rows(base: Side, new: Side, role: Role) -> tuple[Rows, Rows, list[str]]:
    if isinstance(base, Recorded) and isinstance(new, Recorded):
        return samples.of_defenses(base, new) if role == "defense" else samples.of_attacks(base, new)
    if role == "attack":
        raise NftbenchError("--as attack needs the records of both sides, which a leaderboard.json does not have")
    first, second = (
        samples.of_board(one) if isinstance(one, Board) else samples.of_defenses(one, one)[0] for one in (base, new)
    )
    return first, second, []


def _check_utility(names: Sequence[str], sides: Sequence[Side], rows: Sequence[RowSamples]) -> None:
    """Refuse the name of a utility metric that neither side has.

    Raises:
        NftbenchError: names the most similar metric.
    """
    planned = [text for side in sides if isinstance(side, Recorded) for text in side.manifest.suite.utility]
    everything = {*(f"{UTILITY}.{text}" for text in planned), *(name for row in rows for name in row.samples)}
    utilities = sorted(name for name in everything if name.startswith(f"{UTILITY}."))
    for name in names:
        if name.startswith(f"{UTILITY}.") and name not in utilities:
            raise NftbenchError(f"{name}: neither side measures it{suggest(name, utilities)}")


def _chosen(first: Rows, second: Rows, settings: Settings) -> list[str]:
    """The rows to compare: those that are asked for, or else all but controls."""
    everything = {**first, **second}
    if not settings.rows:
        return sorted(name for name, row in everything.items() if not row.control)
    found = []
    for asked in settings.rows:
        matching = [name for name in everything if name == asked or name.partition("[")[0] == asked]
        if not matching:
            name = asked.partition("[")[0]
            variants = sorted(one for one in everything if one.partition("[")[0] == name)
            names = sorted({one.partition("[")[0] for one in everything})
            similar = suggest(asked, variants) if variants else suggest(name, names)
            raise NftbenchError(f"--rows {asked}: on neither side{similar}")
        found += matching
    return sorted(set(found))


@dataclass(frozen=True)
class _Tested:
    """A line with its difference, before Holm's correction."""

    line: Line
    found: Difference | None = None


def _lines(
    first: Rows,
    second: Rows,
    names: Sequence[str],
    asked: Sequence[str],
    settings: Settings,
    drops: Mapping[str, float],
    ruler: _Rulers,
) -> Iterator[_Tested]:
    for row in names:
        base, new = first.get(row), second.get(row)
        for name in _metrics(asked, base, new):
            metric = known.metric(settings.role, name)
            blank = Line(row, name, metric.unit, "incomparable", min_drop=drops.get(name, drops[metric.name]))
            if why := ruler.against(settings.role, name):
                yield _Tested(replace(blank, why=why))
            elif base is None:
                yield _Tested(replace(blank, verdict="new", why="BASE has no such row", new=_mean(new, name)))
            elif new is None:
                yield _Tested(replace(blank, verdict="missing", why="NEW has no such row", base=_mean(base, name)))
            else:
                yield _tested(blank, base, new, ruler.same_grammars, 1 if metric.higher_is_better else -1)


def _tested(blank: Line, base: RowSamples, new: RowSamples, same_grammars: bool, direction: int) -> _Tested:
    name = blank.metric
    one, other = base.samples.get(name), new.samples.get(name)
    blank = replace(blank, base=one.mean if one else None, new=other.mean if other else None)
    if one is None and other is None:
        return _Tested(replace(blank, why=_reason(new, name) or _reason(base, name) or "known on neither side"))
    if one is None:
        return _Tested(replace(blank, verdict="new", why=f"BASE: {_reason(base, name) or 'not known'}"))
    if other is None or _lacking(other, new) > _lacking(one, base):
        return _Tested(replace(blank, verdict="missing", why=f"NEW: {_reason(new, name) or 'not known'}"))
    found = between(one, other, base.bases, new.bases, same_grammars=same_grammars)
    better = direction * found.interval.value + 0.0
    return _Tested(
        replace(
            blank, difference=found.interval, better=better, p=found.p if found.tested else None, paired=found.paired
        ),
        found,
    )


def _judged(tested: Sequence[_Tested], alpha: float) -> list[Line]:
    """The lines with verdicts, after Holm's correction over all that were tested; the gravest first."""
    level = alpha / max(1, sum(one.found is not None and one.found.tested for one in tested))
    adjusted = iter(holm([one.found.p for one in tested if one.found is not None and one.found.tested]))
    lines = []
    for one in tested:
        if one.found is None:
            lines.append(one.line)
            continue
        p, line, limit = next(adjusted) if one.found.tested else None, one.line, one.found.detectable(level)
        assert line.better is not None
        called = verdict(one.found, line.better, 1.0 if p is None else p, limit, line.min_drop, alpha)
        detectable = limit if math.isfinite(limit) else None
        line = replace(line, verdict=called, p_holm=p, detectable=detectable)
        lines.append(replace(line, why=_why(line, one.found, alpha)))
    return sorted(lines, key=lambda line: (ORDER.index(line.verdict), not line.moved, line.row, line.metric))


def _why(line: Line, found: Difference, alpha: float) -> str:
    called = line.verdict
    if not found.tested:
        return "a change of the excess is not tested: suppression and retention are" if called != "held" else ""
    seeds = f"{found.seeds} base seed{'s' * (found.seeds != 1)}"
    way = "worse" if line.better is not None and line.better < 0 else "better"
    if not line.moved and line.p_holm is not None and line.p_holm <= alpha:
        return f"{way}, and not by chance, but by less than --min-drop"
    if called == "underpowered" and line.moved:
        return f"{way} by what matters or more, which {seeds} cannot test"
    if called == "underpowered":
        return f"a drop that matters could be missed: {seeds}, {'paired' if found.paired else 'not paired'}"
    return "large enough to matter, but it may be chance" if called == "suspect" else ""


def _metrics(asked: Sequence[str], base: RowSamples | None, new: RowSamples | None) -> list[str]:
    """The names of the metrics, with every utility metric of the row where they are asked for together."""
    found = []
    for name in dict.fromkeys(asked):
        if name != UTILITY:
            found.append(name)
            continue
        sides = [side.samples for side in (base, new) if side is not None]
        found += sorted({one for side in sides for one in side if one.startswith(f"{UTILITY}.")})
    return found


def _lacking(sample: Sample, row: RowSamples) -> int:
    """How many planned seeds have no number."""
    return len(row.seeds - sample.by_seed.keys()) if sample.by_seed else 0


def _reason(row: RowSamples, name: str) -> str:
    return row.reasons.get(name) or row.reasons.get("", "")


def _mean(row: RowSamples | None, name: str) -> Interval | None:
    sample = row.samples.get(name) if row else None
    return sample.mean if sample else None
