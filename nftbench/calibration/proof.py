"""What a proof works with: a run's records, and the finding of a judge.

A `Measured` proof derives a suite, which is run like any other, and judges its records. A `Read` proof judges records
of finished runs. Records hold no findings, so either can be judged again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.scoring import Leaderboard, score
from nftbench.scoring.grid import NONE, Grid, arrange
from nftbench.scoring.intervals import Interval
from nftbench.scoring.leaderboard import origin_problems
from nftbench.scoring.points import mean_points
from nftbench.scoring.table import Table
from nftbench.suites.schema import Family, Suite


@dataclass(frozen=True)
class Run:
    """The cells that a run planned, and its records."""

    suite: Suite
    planned: tuple[CellId, ...]
    records: tuple[Record, ...]
    ladder: Mapping[str, Family] = field(default_factory=dict)
    """The suite's families of trivial defenses, with specs as records write them."""
    initialisations: tuple[str, ...] = ()
    """The rows that are further initialisations of the undefended model."""

    @classmethod
    def of(cls, plan: Plan, records: Mapping[str, Record]) -> Run:
        """A plan's cells without yardsticks, with the records that exist."""
        cells = [cell for cell in plan.cells if plan.role(cell) != "yardstick"]
        return cls(
            plan.suite,
            tuple(map(CellId.of, cells)),
            tuple(records[cell.key] for cell in cells if cell.key in records),
            plan.ladder,
            plan.initialisations,
        )

    @classmethod
    def read(cls, folder: Path, cache: Path) -> Run:
        """The run that `nftbench run` or `nftbench calibrate` wrote into a folder.

        Raises:
            NftbenchError: there is no manifest of a run.
        """
        store = Store(folder, cache)
        manifest, found = store.manifest(), store.records()
        records = tuple(found[cell.key] for cell in manifest.cells if cell.key in found)
        planned = tuple(cell.id for cell in manifest.cells)
        return cls(manifest.suite, planned, records, manifest.ladder, manifest.initialisations)

    @property
    def missing(self) -> str:
        """Cells without a result that counts, in words; empty where every cell has one."""
        faults = self.grid().faults
        lost = [cell for cell in self.planned if cell in faults]
        if not lost:
            return ""
        return f"{len(lost)} of {len(self.planned)} cells have no result, first {lost[0]}: {faults[lost[0]]}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The ranked tasks, as records name them."""
        return tuple(sorted({one.task for one in self.records if one.role == "ranked"}))

    def grid(self) -> Grid:
        """The records by cell."""
        return arrange(self.records, self.planned, self.suite.ranking, self.ladder, self.initialisations)[0]

    def board(self) -> Leaderboard:
        """The leaderboard that the records make."""
        return score(
            self.records,
            ranking=self.suite.ranking,
            ladder=self.ladder,
            initialisations=self.initialisations,
            planned=self.planned,
        )

    def at(self, seeds: Collection[int]) -> Run:
        """The run as if only these base seeds had been planned."""
        return replace(
            self,
            planned=tuple(cell for cell in self.planned if cell.seed in seeds),
            records=tuple(one for one in self.records if one.seed in seeds),
        )

    def by(self, attacks: Collection[str]) -> Run:
        """The run as if no other attacks had been planned than these and `none`."""
        kept = {NONE, *attacks}
        return replace(
            self,
            planned=tuple(cell for cell in self.planned if cell.attack in kept),
            records=tuple(one for one in self.records if one.attack in kept),
        )

    def without(self, attack: str) -> Run:
        """The run as if this attack had never been planned."""
        return self.by({cell.attack for cell in self.planned} - {attack})

    def attacked(self, row: str) -> dict[int, float]:
        """Points that the best attack at the ranking's knowledge reaches: means over tasks, by seed."""
        grid = self.grid()
        return mean_points(grid.best_finetuning(row, self.tasks, grid.within(grid.ranking)))


@dataclass(frozen=True)
class Finding:
    """What a judge found: tables to read, the numbers behind them as JSON, and failures of the benchmark.

    `verdict` is false for a proof that cannot fail and only reports.
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

    `derive(suite, rows, attacks)` makes it: `rows` are defenses that the user names, if `tries` allows that, and
    `attacks` replace the proof's own choice. `needed` leaves out cells of the plan. `judge` is given the suite under
    proof, and the run of the derived suite.
    """

    derive: Callable[[Suite, Sequence[str], Sequence[str]], Suite]
    judge: Callable[[Suite, Run], Finding]
    needed: Callable[[Plan], Plan] = lambda plan: plan
    tries: bool = False

    def found(self, suite: Suite, run: Run) -> Finding:
        """What the judge finds, with a note if the run's records differ in commit or machine."""
        finding = self.judge(suite, run)
        return replace(finding, notes=(*finding.notes, *origin_problems(run.records)))

    def again(self, suite: Suite, proof: str, runs: Sequence[Run]) -> Finding:
        """Judge a finished run.

        Raises:
            NftbenchError: there is not exactly one run, or it is of another suite or proof.
        """
        run = only(runs, proof)
        wanted = f"{suite.name}-{proof}"
        if run.suite.name != wanted:
            raise NftbenchError(f"--proof {proof} of {suite.name} reads the run {wanted}, not {run.suite.name}")
        return self.found(suite, run)


@dataclass(frozen=True)
class Read:
    """A proof that reads finished runs: those of `proofs`, or else that of the suite itself."""

    judge: Callable[[Sequence[Run]], Finding]
    proofs: tuple[str, ...] = ()

    def folders(self, suite: str) -> list[Path]:
        """The folders of the runs, unless the command line names others."""
        return [Path("runs") / (f"{suite}-{proof}" if proof else suite) for proof in self.proofs or ("",)]


def only(runs: Sequence[Run], proof: str) -> Run:
    """The one run that a proof reads.

    Raises:
        NftbenchError: there is not exactly one.
    """
    if len(runs) != 1:
        raise NftbenchError(f"--proof {proof} reads one run: name its folder with --from")
    return runs[0]


def ranked_with_effect(standing: str, excess: Interval | None) -> bool:
    """Whether the row is ranked, and the interval of its excess lies above zero."""
    return standing in ("ranked", "preliminary") and excess is not None and excess.low > 0
