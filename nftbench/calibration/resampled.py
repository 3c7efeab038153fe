"""Fake defenses: undefended models that are judged as though they were defended, drawn from the records of one run.

Each base seed of the run has several undefended models, which differ in their initialisation alone, and a ladder of
trivial defenses. A *fake* takes some of the seeds, and at each of them one of the other models than the reference. Its
utility is compared with the mean of all other models, as a row's is with that of the reference's initialisations. A
defense that pre-trains and does nothing else differs from its reference only in this way.

The score is the ranking's own: the functions of `nftbench.scoring` on numbers by seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nftbench.calibration.proof import Run
from nftbench.errors import NftbenchError
from nftbench.scoring import frontier
from nftbench.scoring.frontier import BySeed
from nftbench.scoring.grid import NONE
from nftbench.scoring.headroom import headroom
from nftbench.scoring.intervals import Interval
from nftbench.scoring.points import mean_points
from nftbench.scoring.rank_intervals import Heights
from nftbench.scoring.resistance import attacked_by_row
from nftbench.scoring.utility import Scale, initialisations, reached, scales, usable, variations
from nftbench.scoring.utility_badge import Badge, MetricUtility, badge
from nftbench.suites.schema import Family

Choice = Mapping[int, str]
"""A fake: by base seed, the model that plays the defended one."""


@dataclass(frozen=True)
class Fake:
    """A fake defense, judged."""

    choice: Choice
    excess: Interval
    heights: Heights
    badge: Badge
    planted: float = 0.0
    """Points that are taken from it beyond what is taken from the model that plays it."""
    over: tuple[str, str] = ("", "")
    """The metric and the family that leave least."""

    def raised(self, points: float) -> Fake:
        """The fake if it took so many points more. No curve depends on that, so the whole interval moves as far."""
        excess = replace(
            self.excess,
            value=self.excess.value + points,
            low=self.excess.low + points,
            high=self.excess.high + points,
            p=math.nan,  # that of each curve is not kept
        )
        heights = Heights(
            *(
                {seed: height + points for seed, height in one.items()}
                for one in (self.heights.own, self.heights.lowest, self.heights.highest)
            )
        )
        return replace(self, excess=excess, heights=heights, planted=self.planted + points)


@dataclass(frozen=True)
class Pool:
    """Undefended models and a ladder, in points by base seed."""

    seeds: tuple[int, ...]
    models: tuple[str, ...]
    """The undefended models; the first is the reference."""
    attacked: Mapping[str, BySeed]
    """Of models and doses: where the best attack ends."""
    scratch: BySeed
    """Where training from scratch ends; empty where it was not run."""
    utility: Mapping[str, Mapping[str, BySeed]]
    """Of models and doses: each metric, unattacked."""
    floor: Mapping[str, BySeed]
    """Of each metric."""
    families: Mapping[str, Family]

    @classmethod
    def of(cls, run: Run) -> Pool:
        """The pool of a run in which no cell is missing.

        Raises:
            NftbenchError: it has fewer than two undefended models besides the reference, or no task has headroom.
        """
        grid = run.grid()
        models = initialisations(grid, NONE)
        if len(models) < 3:
            raise NftbenchError(
                f"{run.suite.name}: a proof needs three undefended models at each seed, and this run has {len(models)}"
            )
        rows = [*models, *(dose for family in run.ladder.values() for dose in family.doses)]
        attacks = grid.within(grid.ranking)
        tasks = [one.task for one in headroom(grid, NONE) if one.kept]
        if not tasks:
            raise NftbenchError(f"{run.suite.name}: no task on which the undefended model ends clearly above scratch")
        metrics = scales(grid, NONE)
        best = grid.best_attacks(NONE, tasks, attacks & grid.ignoring_release())
        return cls(
            seeds=tuple(sorted(grid.seeds[NONE])),
            models=models,
            attacked=attacked_by_row(grid, rows, tasks, attacks),
            scratch=mean_points(best),
            utility={row: reached(grid, row, metrics) for row in rows},
            floor={metric: scale.floor for metric, scale in metrics.items()},
            families=run.ladder,
        )

    def draw(self, size: int, generator: random.Random, rows: int = 1) -> list[Choice]:
        """Fakes of one board: the same seeds, drawn at random, and at each seed another model for each row."""
        seeds = generator.sample(self.seeds, size)
        models = {seed: generator.sample(self.models[1:], rows) for seed in seeds}
        return [{seed: models[seed][row] for seed in seeds} for row in range(rows)]

    def judge(self, choice: Choice) -> Fake:
        """The score of a fake.

        Raises:
            NftbenchError: undefended models know nothing that could be lost, or keep less than the ladder reaches.
        """
        metrics = usable({metric: self._scale(metric, choice) for metric in self.floor})
        if not metrics:
            raise NftbenchError(f"at seeds {sorted(choice)} undefended models are above the floor on no utility metric")
        row = self._row("fake", choice, metrics)
        families = [self._family(name, metrics, list(choice)) for name in self.families]
        found = frontier.excess(row, families, variations(metrics))
        if found.interval is None or found.metric is None or found.family is None:
            raise NftbenchError(f"an undefended model has no score: {found.reason}")
        kept = [
            MetricUtility(
                {seed: self.utility[played][metric][seed] for seed, played in choice.items()}, scale.full, scale.floor
            )
            for metric, scale in metrics.items()
        ]
        return Fake(choice, found.interval, found.heights, badge(kept), over=(found.metric, found.family))

    def _scale(self, metric: str, choice: Choice) -> Scale:
        """A metric on all other undefended models than the ones that are judged."""
        full = {
            seed: tuple(self.utility[one][metric][seed] for one in self.models if one != played)
            for seed, played in choice.items()
        }
        return Scale(full, {seed: self.floor[metric][seed] for seed in choice})

    def _family(self, name: str, metrics: Mapping[str, Scale], seeds: Sequence[int]) -> frontier.Family:
        family, reference = self.families[name], self.attacked[self.models[0]]
        doses = tuple(self._row(dose, dict.fromkeys(seeds, dose), metrics) for dose in family.doses)
        ends = (
            None
            if family.stairs or not self.scratch
            else {seed: reference[seed] - self.scratch[seed] for seed in seeds}
        )
        return frontier.Family(name, doses, ends, family.stairs)

    def _row(self, name: str, rows: Choice, metrics: Mapping[str, Scale]) -> frontier.Row:
        """The numbers of a row that is played by these rows of the run."""
        reference = self.attacked[self.models[0]]
        return frontier.Row(
            name,
            {seed: reference[seed] - self.attacked[row][seed] for seed, row in rows.items()},
            {
                metric: {seed: scale.share(seed, self.utility[row][metric][seed]) for seed, row in rows.items()}
                for metric, scale in metrics.items()
            },
        )
