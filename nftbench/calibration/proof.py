"""The nouns of a proof: a finished run, and what a judge finds in it.

A proof that measures derives a suite, which is run as any suite is, and judges its records; another reads the records
of runs that are there already. Either can be judged again at any time: nothing that a judge says is kept in a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan
from nftbench.records.record import Record
from nftbench.records.store import Store
from nftbench.report.tables import Table
from nftbench.scoring.grid import Grid, PlannedCell, arrange, mean_points
from nftbench.scoring.intervals import Interval
from nftbench.scoring.score import Leaderboard, origin_problems, score
from nftbench.suites.schema import Suite


@dataclass(frozen=True)
class Run:
    """The cells that a run planned, and its records."""

    suite: Suite
    planned: tuple[PlannedCell, ...]
    records: tuple[Record, ...]

    @classmethod
    def of(cls, plan: Plan, records: Mapping[str, Record]) -> Run:
        """A plan's cells without yardsticks, with those of its records that there are."""
        cells = [cell for cell in plan.cells if plan.role(cell) != "yardstick"]
        planned = [(str(cell.defense), str(cell.attack), str(cell.task), cell.seed) for cell in cells]
        return cls(plan.suite, tuple(planned), tuple(records[cell.key] for cell in cells if cell.key in records))

    @classmethod
    def read(cls, folder: Path, cache: Path) -> Run:
        """What `nftbench run` or `nftbench calibrate` left in a folder.

        Raises:
            NftbenchError: there is no manifest of a run.
        """
        store = Store(folder, cache)
        manifest, found = store.manifest(), store.records()
        records = tuple(found[cell.key] for cell in manifest.cells if cell.key in found)
        return cls(manifest.suite, tuple(cell[:4] for cell in manifest.cells), records)

    @property
    def missing(self) -> str:
        """What has no result, in words; empty where everything has."""
        done = {(one.defense, one.attack, one.task, one.seed) for one in self.records if one.status == "ok"}
        lost = [cell for cell in self.planned if cell not in done]
        if not lost:
            return ""
        defense, attack, task, seed = lost[0]
        first = f"{defense} × {attack} on {task}, seed {seed}"
        return f"{len(lost)} of {len(self.planned)} cells have no result, first {first}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The ranked tasks, as records name them."""
        return tuple(sorted({one.task for one in self.records if one.role == "ranked"}))

    def grid(self) -> Grid:
        """The records by place."""
        return arrange(self.records, self.planned, self.suite.ranking, self.suite.utility_bar)[0]

    def board(self) -> Leaderboard:
        """The leaderboard that the records make."""
        return score(self.records, utility_bar=self.suite.utility_bar, ranking=self.suite.ranking, planned=self.planned)

    def of_rows(self, rows: Iterable[str]) -> Run:
        """As if only these defenses had been planned."""
        kept = set(rows)
        return replace(
            self,
            planned=tuple(cell for cell in self.planned if cell[0] in kept),
            records=tuple(one for one in self.records if one.defense in kept),
        )

    def without(self, attack: str) -> Run:
        """As if this attack had never been planned."""
        return replace(
            self,
            planned=tuple(cell for cell in self.planned if cell[1] != attack),
            records=tuple(one for one in self.records if one.attack != attack),
        )

    def attacked(self, row: str) -> dict[int, float]:
        """Points of the best attack within the ranking level, picked on validation: the mean over tasks, by seed."""
        grid = self.grid()
        return mean_points(grid.best(row, self.tasks, grid.within(grid.ranking)))


@dataclass(frozen=True)
class Finding:
    """What a judge found: tables to read, the numbers behind them as JSON, and what speaks against the benchmark.

    `verdict` is false where nothing could: the proof only reports.
    """

    name: str
    tables: tuple[Table, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: bool = True
    draw: Callable[[Path], Path] | None = None
    """Draws the proof's picture into a folder."""

    @property
    def valid(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class Measured:
    """A proof that runs a suite of its own.

    `derive(suite, rows, attacks)` makes it: `rows` are the defenses to be tried, for proofs that try some, and
    `attacks` replace the proof's own choice. `needed` leaves out cells of the plan. `judge` is given the suite that is
    proved, and the run of the derived one. `tries` says whether there are rows to be tried.
    """

    derive: Callable[[Suite, Sequence[str], Sequence[str]], Suite]
    judge: Callable[[Suite, Run], Finding]
    needed: Callable[[Plan], Plan] = lambda plan: plan
    tries: bool = False

    def found(self, suite: Suite, run: Run) -> Finding:
        """What the judge finds, and whether the run's records differ in commit or machine."""
        finding = self.judge(suite, run)
        return replace(finding, notes=(*finding.notes, *origin_problems(run.records)))

    def again(self, suite: Suite, proof: str, runs: Sequence[Run]) -> Finding:
        """Judge a run that is there.

        Raises:
            NftbenchError: not one run, or one of another suite or proof.
        """
        run = only(runs, proof)
        wanted = f"{suite.name}-{proof}"
        if run.suite.name != wanted:
            raise NftbenchError(f"--proof {proof} of {suite.name} reads the run {wanted}, not {run.suite.name}")
        return self.found(suite, run)


@dataclass(frozen=True)
class Read:
    """A proof that reads finished runs: by default that of the suite itself, or those of other proofs."""

    judge: Callable[[Sequence[Run]], Finding]
    proofs: tuple[str, ...] = ()

    def folders(self, suite: str) -> list[Path]:
        """Where the runs lie unless the command line says otherwise."""
        return [Path("runs") / (f"{suite}-{proof}" if proof else suite) for proof in self.proofs or ("",)]


def only(runs: Sequence[Run], proof: str) -> Run:
    """The one run that a proof reads.

    Raises:
        NftbenchError: not one.
    """
    if len(runs) != 1:
        raise NftbenchError(f"--proof {proof} reads one run: name its folder with --from")
    return runs[0]


def ranked_with_effect(standing: str, excess: Interval | None) -> bool:
    """No flag unranks the row, and the interval of its excess suppression lies above zero."""
    return standing in ("ranked", "preliminary") and excess is not None and excess.low > 0
