"""How long what is left of a run takes: predicted from the settings, and corrected by what has been measured.

The time of a run is that of its steps: base models to pre-train, releases to make, and jobs. The constants are of one
machine, and on another's CPU its speed is measured (speed.py). What has been measured of a kind of step, such as the
jobs of one attack, replaces what was predicted for it. Kinds of which nothing is measured yet are taken to be as much
slower or faster than predicted as the measured ones. All are taken to go on at the pace of the latest steps, because
other work on the machine comes and goes.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nftbench.contract import Passes
from nftbench.planning.plan import Job, Plan
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.running import estimate, speed
from nftbench.running.estimate import DOCUMENTS, FILLED, FORWARD_FLOPS, LARGE, TRAIN_FLOPS, Left, duration
from nftbench.suites.schema import Suite

THROUGHPUT = {"cpu": 3e10, "cuda": 2e13}
"""FLOPs a second that one worker is taken to do: one CPU core (the suite `small` as measured), one GPU."""
LARGE_GAIN = 4.0
"""A model with more parameters than `LARGE` is this many times as fast on the CPU, because its matrices fill the core:
1.0e11 to 1.3e11 FLOPs a second were measured from 6 M to 200 M parameters, against 3e10 at 0.1 M."""
STARTUP_SECONDS = 10.0
"""Until the first step: planning, and the start of the workers."""
STEP_SECONDS = 1.4
"""What each release and each job takes beside training and evaluation: models and tasks are loaded, saved and checked.
Releases and jobs of `standard` took 1.3 to 1.6 s more than their cells. In `smoke` this is most of the time."""
LONGER = 8.0
"""How many times as long an attack takes that trains all weights for more steps; `long` takes ten times the steps."""
OVERDUE = 0.2
"""What is left of a step that runs for longer than it should take, as a share of the time for which it has run."""

RECENT = 24
"""The latest steps, by which it is seen how slow the machine is now."""
TURNS = 10
"""By so many turns the pace of the machine and the usual seconds of each kind agree, see `_fit`."""

Stage = Literal["base", "protect", "attack"]
Kind = tuple[Stage, str]


@dataclass(frozen=True)
class Step:
    """A part of a run as far as its time goes."""

    stage: Stage
    name: str
    """The spec of the defense or attack; empty for a base."""
    predicted: float
    """Seconds of one unit, from the settings alone."""
    units: int = 1
    """A job's cells; 1 of everything else."""
    flops: float = 0.0
    """Of training and evaluation, in all units."""

    @property
    def kind(self) -> Kind:
        return self.stage, self.name


@dataclass(frozen=True)
class Forecast:
    """The steps that are left, by the key of the release or job, or by the seed of a base; and measured seconds."""

    left: Mapping[str, Step]
    measured: Sequence[tuple[float, Step]] = ()
    """The seconds of each finished step, with what was predicted for it, in the order in which they ended."""

    def seconds(self, step: Step) -> float:
        """How long a step takes, if the machine stays as slow as it is now."""
        usual = self._usual.get(step.kind, step.predicted * self._slowness[step.stage])
        return step.units * usual * self._pace

    @property
    def _usual(self) -> Mapping[Kind, float]:
        """Measured seconds of one unit, by kind, as if the machine had been equally slow all the time."""
        return self._fitted[0]

    @property
    def _pace(self) -> float:
        """How many times as long as usual the latest steps took."""
        return self._fitted[1]

    @functools.cached_property
    def _fitted(self) -> tuple[Mapping[Kind, float], float]:
        """Kept, because a large run has many steps."""
        return _fit(self.measured)

    @functools.cached_property
    def _slowness(self) -> Mapping[Stage, float]:
        """Usual over predicted seconds of each stage's kinds; of all kinds, where none of the stage is measured."""
        stages: tuple[Stage, ...] = ("base", "protect", "attack")
        found = {}
        for stage in stages:
            known = [step for _, step in self.measured if step.stage == stage] or [step for _, step in self.measured]
            predicted = sum(step.predicted * step.units for step in known)
            usual = sum(self._usual[step.kind] * step.units for step in known)
            found[stage] = usual / predicted if predicted else 1.0
        return found

    def total(self, workers: int, running: Mapping[str, float] | None = None) -> float:
        """Seconds until the end with so many workers, if none of them is ever idle.

        Args:
            running: for the steps that run now, the seconds for which they have been running. One that runs for longer
                than it should shows already how slow the machine is now.
        """
        spent = running or {}
        late = [(spent[key], step) for key, step in self.left.items() if spent.get(key, 0.0) > self.seconds(step)]
        now = replace(self, measured=[*self.measured, *late]) if late else self
        each = [
            max(now.seconds(step) - spent.get(key, 0.0), OVERDUE * spent.get(key, 0.0))
            for key, step in self.left.items()
        ]
        return max([sum(each) / workers, *each])

    def after(self, keys: Collection[str], seconds: float | None) -> Forecast:
        """The forecast once steps have ended that took so long together; None where their time was not measured.

        Of several steps, each is taken to have had the share of the time that was expected of it. The first release of
        a seed makes the base on its way, and the two cannot be told apart: of a given base, whose files are only read,
        it would otherwise seem that reading takes as long as all checks of a release.
        """
        ended = [self.left[key] for key in keys if key in self.left]
        left = {key: step for key, step in self.left.items() if key not in keys}
        if seconds is None:
            return replace(self, left=left)
        expected = [self.seconds(step) for step in ended] if len(ended) > 1 else [1.0]
        shares = [seconds * one / (sum(expected) or 1.0) for one in expected]
        return Forecast(left, [*self.measured, *zip(shares, ended, strict=False)])


def _fit(measured: Sequence[tuple[float, Step]]) -> tuple[Mapping[Kind, float], float]:
    """The usual seconds of one unit, by kind, and how many times as long the latest steps took.

    Other work comes and goes while a run lasts, and not every kind of step was measured beside the same. So what is
    usual is worked out from the pace at each step, and the pace from what is usual, in turns until both agree.
    """
    windows = [(max(0, end - RECENT), end) for end in range(1, len(measured) + 1)]
    usual, paces = dict[Kind, float](), [1.0 for _ in windows]
    seconds = [0.0, *itertools.accumulate(took for took, _ in measured)]
    units = Counter[Kind]()
    for _, step in measured:
        units[step.kind] += step.units
    for _ in range(TURNS):
        usual = dict.fromkeys(units, 0.0)
        for (took, step), pace in zip(measured, paces, strict=True):
            usual[step.kind] += took / pace / units[step.kind]
        expected = [0.0, *itertools.accumulate(step.units * usual[step.kind] for _, step in measured)]
        recent = [(seconds[end] - seconds[begin], expected[end] - expected[begin]) for begin, end in windows]
        paces = [took / wanted if took > 0 and wanted > 0 else 1.0 for took, wanted in recent]
    return usual, paces[-1] if paces else 1.0


def base_step(seed: int) -> str:
    """The key of a base model's step."""
    return f"base {seed}"


def forecast(plan: Plan, left: Left, parameters: int, records: Iterable[Record] = ()) -> Forecast:
    """What is left of a plan, with the measurements that a folder's records hold.

    Args:
        parameters: the size of the suite's own model.
    """
    predictor = _Predictor(plan, left, parameters)
    return Forecast(dict(predictor.steps()), predictor.measured(records))


def time_line(plan: Plan, records: Mapping[str, Record], left: Left, parameters: int, workers: int) -> str:
    """An estimate of a run's time, and what it is based on."""
    if not left.cells:
        return "nothing is left to run"
    expected = forecast(plan, left, parameters, records.values())
    if expected.measured:
        return f"{about(expected, workers)}, as {len(expected.measured)} releases and jobs of its records took"
    flops = sum(step.flops for step in expected.left.values())
    return f"{about(expected, workers)}; no records yet: steps × tokens × parameters make {flops:.2g} FLOPs"


def about(expected: Forecast, workers: int) -> str:
    """`about 25 min with 2 workers`."""
    seconds = STARTUP_SECONDS + expected.total(workers)
    return f"about {duration(seconds)} with {workers} worker{'s' * (workers > 1)}"


@dataclass(frozen=True)
class _Predictor:
    """The steps of a plan, with the seconds that its settings let expect."""

    plan: Plan
    given: Left
    parameters: int

    def steps(self) -> Iterator[tuple[str, Step]]:
        """The steps that are left, by their keys."""
        left, missing = self.given, set(self.given.releases)
        keys = {cell.key for cell in left.cells}
        settled = {cell.key for cell in self.plan.cells} - keys
        for seed in left.bases:
            yield base_step(seed), self.base()
        for job in self.plan.jobs():
            open_job = job.without(settled)
            if not open_job.cells:
                continue
            if (job.defense, job.seed) in missing:
                yield job.release, self.release(job.defense)
            yield job.key, self.job(open_job)

    def base(self) -> Step:
        return self.made("base", "", self.parameters, self.pretraining())

    def release(self, defense: Spec) -> Step:
        trained = self.plan.defenses[defense].stage == "pretrain" and defense not in self.given.given
        operations = self.training(defense) + (self.pretraining() if trained else self.checks())
        return self.made("protect", str(defense), self.parameters, operations)

    def job(self, job: Job) -> Step:
        attack, budget, block = self.plan.attacks[job.attack], self.plan.suite.budget, self.plan.suite.corpus.block
        cells, size = len(job.cells), self.given.size(job.defense, self.parameters)
        if not attack.trains:
            documents = min(DOCUMENTS, budget.max_test_documents or DOCUMENTS)
            operations = cells * FORWARD_FLOPS * documents * FILLED * block
        else:
            operations = cells * _sweep(self.plan.suite) * (LONGER if attack.trained_weights == "all_longer" else 1.0)
            if "data" in attack.knowledge:  # it prepares on public text
                operations += TRAIN_FLOPS * budget.preparation_steps * budget.batch * block
            if job.attack in self.plan.utility_after:
                documents = min(DOCUMENTS, budget.max_utility_documents or DOCUMENTS)
                operations += cells * len(self.plan.suite.utility) * FORWARD_FLOPS * documents * FILLED * block
        return self.made("attack", str(job.attack), size, operations, cells)

    def pretraining(self) -> float:
        """FLOPs a parameter of the recipe's run; 0 where the base is given."""
        if self.plan.suite.given is not None:
            return 0.0
        recipe = self.plan.suite.pretraining
        return TRAIN_FLOPS * recipe.steps * recipe.batch * self.plan.suite.corpus.block

    def training(self, defense: Spec) -> float:
        """FLOPs a parameter of what the defense itself trains, beside the recipe's run."""
        passes = self.passes(defense)
        return TRAIN_FLOPS * self.plan.suite.corpus.block * (passes.blocks + FILLED * passes.documents)

    @functools.cached_property
    def passes(self) -> Callable[[Spec], Passes]:
        """How much a defense trains."""
        return estimate.training_passes(self.plan)

    def checks(self) -> float:
        """FLOPs a parameter of the referee's checks of a release, where its base is a large given model."""
        if self.plan.suite.given is None or self.parameters <= LARGE:
            return 0.0
        from nftbench.running import given_estimate  # which loads torch

        return FORWARD_FLOPS * given_estimate.CHECKED_TOKENS

    def made(self, stage: Stage, name: str, size: int, operations: float, units: int = 1) -> Step:
        """The step of one worker that takes so many FLOPs for each of a model's `size` parameters."""
        flops, throughput = operations * size, THROUGHPUT[self.plan.device.kind]
        if self.plan.device.kind == "cpu":
            large = size > LARGE
            throughput *= (LARGE_GAIN if large else 1.0) / speed.slowness(large=large)
        return Step(stage, name, (self.overhead + flops / throughput) / units, units, flops)

    @property
    def overhead(self) -> float:
        """What each release and each job takes on this machine beside training and evaluation."""
        return STEP_SECONDS * speed.slowness(large=False)

    def measured(self, records: Iterable[Record]) -> list[tuple[float, Step]]:
        """What records say of the plan's steps: seconds of a job's cells, of its preparation, of a defense."""
        jobs = {(job.release, str(job.attack)): job for job in self.plan.jobs()}
        groups: dict[tuple[str, str], list[Record]] = {}
        made: set[str] = set()
        found = []
        for record in sorted(records, key=lambda one: str(one.provenance.get("written"))):
            if (record.release, record.attack) in jobs and record.provenance.get("seconds"):
                groups.setdefault((record.release, record.attack), []).append(record)
        for key, group in groups.items():
            job = jobs[key]
            protection = next((one.protection for one in group if one.protection), None)
            if protection is not None and job.release not in made:
                made.add(job.release)
                found.append((self.overhead + protection.seconds, self.release(job.defense)))
            # A record's seconds begin after the preparation, which all cells of a job share.
            prepared = max((one.cost.preparation_seconds for one in group if one.cost), default=0.0)
            seconds = self.overhead + prepared + sum(one.provenance["seconds"] for one in group)
            found.append((seconds, self.job(replace(job, cells=job.cells[: len(group)]))))
        return found


def _sweep(suite: Suite) -> float:
    """FLOPs a parameter of one attack on one task: every learning rate, restarts, validation at each point, test.

    The sweep's own run is counted once more, because it is repeated where no restart beats it.
    """
    budget, tokens = suite.budget, FILLED * suite.corpus.block
    rates = max(len(grid) for grid in budget.learning_rates.values())
    again = budget.restarts + 1
    steps = (rates + again) * max(budget.durations)
    validation = min(DOCUMENTS, budget.max_validation_documents or DOCUMENTS)
    test = min(DOCUMENTS, budget.max_test_documents or DOCUMENTS)
    points = 1 + rates * (len(budget.durations) - 1) + again  # step 0 is the same for every rate
    documents = points * validation + 2 * test
    return tokens * (TRAIN_FLOPS * steps * budget.batch + FORWARD_FLOPS * documents)
