"""What a plan would cost, estimated before anything runs: cells, time, memory, disk."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nftbench.planning import facts
from nftbench.planning.keys import base_key
from nftbench.planning.plan import Plan
from nftbench.records import store as stores
from nftbench.records.manifest import Skip
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.suites.schema import Suite

THROUGHPUT = {"cpu": 3e10, "cuda": 2e13}
"""FLOPs a second that one worker is taken to do: one CPU core (the suite `small` as measured), one GPU."""
STARTUP_SECONDS = 10.0
"""Until the first step: planning, and the start of the workers."""
STEP_SECONDS = 1.0
"""What each release and each job takes beside training and evaluation: models and tasks are loaded, saved and checked.
In a suite as small as `smoke` this is most of the time."""
LARGE, LARGE_GAIN = 1_000_000, 4.0
"""A model with more parameters than LARGE is this many times as fast on the CPU, because its matrices fill the core:
1.0e11 to 1.3e11 FLOPs a second were measured from 6 M to 200 M parameters, against 3e10 at 0.1 M."""
COPIES = 6
"""Float32 numbers that an attack holds for each parameter: weight, gradient and two moments of AdamW, the release, and
the best network so far."""
PROCESS_BYTES = 6e8
"""Memory of a worker with torch and transformers, before any model."""
TRAIN_FLOPS, FORWARD_FLOPS = 6, 2
"""For each parameter and token (Kaplan et al. 2020, section 2.1)."""
DOCUMENTS = 2000
"""Documents of a split whose size is not known before it is loaded."""
FILLED = 0.25
"""Share of a block that a task's document fills, 6 to 9 of 32 tokens in the toy language: batches are as wide as their
longest document, not as a block."""


@dataclass(frozen=True)
class Left:
    """What is left to do: unsettled cells, and the bases and releases that the cache lacks."""

    cells: tuple[Cell, ...]
    releases: tuple[tuple[Spec, int], ...]
    bases: tuple[int, ...]
    given: Mapping[Spec, int] = field(default_factory=dict)
    """The number of parameters of the releases that are given and not made here, by defense."""
    step_bytes: float = 0.0
    """What a training step takes beside weights, gradients and moments; counted for a given base alone."""

    def size(self, defense: Spec, parameters: int) -> int:
        """The number of parameters of a defense's release; `parameters` is that of the suite's own model."""
        return self.given.get(defense, parameters)


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _skipped(skips: Sequence[Skip]) -> list[str]:
    """What is not planned: one line for each reason, with the attacks and defenses."""
    against: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        against.setdefault((skip.attack, skip.reason), []).append(Spec.parse(skip.defense).name)
    together: dict[tuple[str, str], list[str]] = {}
    for (attack, reason), names in against.items():
        together.setdefault((", ".join(dict.fromkeys(names)), reason), []).append(attack)
    return [f"skipped: {', '.join(attacks)} against {names}: {reason}" for (names, reason), attacks in together.items()]


def overview(plan: Plan, store: Store, workers: int) -> RenderableType:
    """What `nftbench plan` prints: settled and planned cells by defense and attack, skipped attacks, and costs."""
    settled = stores.settled(plan.cells, store.records())
    left = remaining(plan, store, settled)
    parameters = parameters_of(plan.suite)
    lines = [
        f"{plan.suite.name}: {len(plan.cells)} cells in {len(plan.jobs())} jobs; "
        f"{len(settled)} settled in {store.results}",
        *(f"{number:2} {defense}" for number, defense in enumerate(_defenses(plan.cells), 1)),
        *_skipped(plan.skips),
        f"time: {time_line(plan, store, left, parameters, workers)}",
        f"memory: {memory_line(left, parameters, workers)}",
        f"disk: {disk_line(plan, store, left, parameters)}",
    ]
    return Group(Text(lines[0]), _grid(plan.cells, settled), *map(Text, lines[1:]))


def remaining(plan: Plan, store: Store, settled: set[str]) -> Left:
    """What a run would do from here."""
    cells = tuple(cell for cell in plan.cells if cell.key not in settled)
    releases = {
        cell.release: (cell.defense, cell.seed)
        for cell in cells
        if not (store.cache / "releases" / cell.release).is_dir()
    }
    needed = sorted({seed for spec, seed in releases.values() if plan.defenses[spec].stage == "posttrain"})
    bases = [seed for seed in needed if not (store.cache / "bases" / _base(plan, seed)).is_dir()]
    bases = bases[:1] if plan.suite.given is not None else bases  # all seeds have one
    defenses = dict.fromkeys(cell.defense for cell in cells)
    given = {spec: size for spec in defenses if (size := facts.given_parameters(str(spec))) is not None}
    left = Left(cells, tuple(releases.values()), tuple(bases), given)
    if plan.suite.given is None:
        return left
    from nftbench.running import given_estimate

    tokens = max(plan.suite.budget.batch * FILLED, plan.suite.pretraining.batch) * plan.suite.corpus.block
    return replace(left, step_bytes=given_estimate.step_bytes(plan.suite, tokens))


def time_line(plan: Plan, store: Store, left: Left, parameters: int, workers: int) -> str:
    """An estimate of a run's time, and what it is based on."""
    if not left.cells:
        return "nothing is left to run"
    many = f"{workers} worker{'s' * (workers > 1)}"
    records = [record for record in store.records().values() if record.provenance.get("seconds")]
    if records:
        seconds = measured_seconds(plan, left, parameters, records) / workers
        return f"about {duration(seconds)} with {many}, as its {len(records)} records took"
    operations, alone = flops(plan, left, parameters), seconds_of(plan, left, parameters)
    steps = len(left.releases) + len({(cell.release, cell.attack) for cell in left.cells})
    seconds = STARTUP_SECONDS + (alone + STEP_SECONDS * steps) / workers
    throughput = f"{operations / alone:.1g}" if alone else "any number"
    stated = (
        f"steps × tokens × parameters make {operations:.2g} FLOPs, taken at {throughput} a second and worker, "
        f"with {STEP_SECONDS:g} s for each of {steps} releases and jobs"
    )
    return f"about {duration(seconds)} with {many}; no records yet: {stated}"


def memory_line(left: Left, parameters: int, workers: int) -> str:
    """An estimate of the memory that all workers need together, if each attacks the largest release."""
    if not left.cells:
        return "nothing is left to run"
    size = memory_bytes(left, parameters, workers) / 1e9
    many = f"{workers} worker{'s' * (workers > 1)}"
    largest = _largest(left, parameters)
    return f"about {size:.2g} GB with {many}, for a model of {largest / 1e6:.3g} M parameters"


def memory_bytes(left: Left, parameters: int, workers: int) -> float:
    """Bytes of memory that all workers need together, if each attacks the largest release."""
    return workers * (PROCESS_BYTES + COPIES * 4 * _largest(left, parameters) + left.step_bytes)


def _largest(left: Left, parameters: int) -> int:
    return max((left.size(cell.defense, parameters) for cell in left.cells), default=0)


def disk_line(plan: Plan, store: Store, left: Left, parameters: int) -> str:
    """An estimate of how much the cache grows."""
    released, bases = _new_artifacts(plan, left, parameters)
    size = disk_bytes(plan, left, parameters) / 1e6
    return (
        f"about {size:.3g} MB more in {store.cache}: {len(left.releases)} releases with {released / 1e6:.3g} M "
        f"parameters in all and {bases} bases of {parameters / 1e6:.3g} M, 4 bytes each"
    )


def disk_bytes(plan: Plan, left: Left, parameters: int) -> int:
    """Bytes by which the cache grows, for the releases and bases that it lacks."""
    released, bases = _new_artifacts(plan, left, parameters)
    return 4 * (released + parameters * bases)


def _new_artifacts(plan: Plan, left: Left, parameters: int) -> tuple[int, int]:
    """The parameters of all releases that the cache lacks, and the number of bases, kept checkpoints among them."""
    kept = len({*plan.suite.pretraining.checkpoints, 1.0}) if plan.suite.given is None else 1
    return sum(left.size(spec, parameters) for spec, _ in left.releases), kept * len(left.bases)


def parameters_of(suite: Suite) -> int:
    """The number of parameters of the suite's model, counted without allocating its weights.

    Raises:
        NftbenchError: the suite's settings describe no valid model.
    """
    if suite.given is not None:
        from nftbench.running import given_estimate

        return given_estimate.checkpoint(suite.given).parameters
    import torch

    from nftbench.models import networks

    with torch.device("meta"):
        network = networks.build(suite.model, None, 0, "meta").network
        if hasattr(network.config, "vocab_size"):  # the tokenizer's, which a run would have to train first
            network = networks.build({**suite.model, "vocab_size": _vocabulary(suite)}, None, 0, "meta").network
    return sum(parameter.numel() for parameter in network.parameters())


def _vocabulary(suite: Suite) -> int:
    if suite.corpus.vocabulary is not None:
        return suite.corpus.vocabulary
    from nftbench.data.grammar import Grammar

    return len(set(Grammar(suite.corpus.grammar).words()))


def _base(plan: Plan, seed: int) -> str:
    state = plan.suite.pretraining.steps if plan.suite.given is None else "given"
    return f"{base_key(plan.suite, seed, plan.data, plan.device)[:32]}-{state}"


def _defenses(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(str(cell.defense) for cell in cells))


def _grid(cells: Sequence[Cell], settled: set[str]) -> Table:
    """Settled of planned cells, attacks down, defenses across by number: their specs are too wide to stand side by
    side."""
    planned = Counter((str(cell.defense), str(cell.attack)) for cell in cells)
    done = Counter((str(cell.defense), str(cell.attack)) for cell in cells if cell.key in settled)
    defenses = _defenses(cells)
    table = Table()
    table.add_column(Text("cells: settled/planned"), overflow="fold")
    for number in range(1, len(defenses) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for attack in dict.fromkeys(attack for _, attack in planned):
        counts = [f"{done[defense, attack]}/{planned[defense, attack]}" for defense in defenses]
        table.add_row(Text(attack), *("" if count.endswith("/0") else count for count in counts))
    return table


def measured_seconds(plan: Plan, left: Left, parameters: int, records: Sequence[Record]) -> float:
    """Seconds of what is left if it goes as the records went: by attack, yardstick and defense, or as their mean."""
    cells = _means(
        [(one.task if one.role == "yardstick" else one.attack, one.provenance["seconds"]) for one in records]
    )
    # A record's seconds begin after the preparation, which all cells of a job share.
    preparations = _means([(one.attack, one.cost.preparation_seconds) for one in records if one.cost])
    prepared = {(cell.release, str(cell.attack)) for cell in left.cells}
    protections = _means([(one.defense, one.protection.seconds) for one in records if one.protection])
    guess = TRAIN_FLOPS * parameters * _pretraining_tokens(plan.suite) / THROUGHPUT[plan.device.kind]
    overall = statistics.fmean(cells.values())
    return (
        sum(
            cells.get(str(cell.task if plan.role(cell) == "yardstick" else cell.attack), overall) for cell in left.cells
        )
        + sum(preparations.get(attack, 0.0) for _, attack in prepared)
        + sum(protections.get(str(spec), guess) for spec, _ in left.releases)
        + max(protections.values(), default=guess) * len(left.bases)
    )


def _means(pairs: Sequence[tuple[str, float]]) -> Mapping[str, float]:
    groups: dict[str, list[float]] = {}
    for name, seconds in pairs:
        groups.setdefault(name, []).append(seconds)
    return {name: statistics.fmean(values) for name, values in groups.items()}


def flops(plan: Plan, left: Left, parameters: int) -> float:
    """Training and evaluation as the settings have them; sweeps without extension."""
    return sum(operations for _, operations in _work(plan, left, parameters))


def seconds_of(plan: Plan, left: Left, parameters: int) -> float:
    """The time that one worker takes for these FLOPs."""
    usual, gain = THROUGHPUT[plan.device.kind], LARGE_GAIN if plan.device.kind == "cpu" else 1.0
    return sum(
        operations / (usual * gain if size > LARGE else usual) for size, operations in _work(plan, left, parameters)
    )


def _work(plan: Plan, left: Left, parameters: int) -> Iterator[tuple[int, float]]:
    """What is left to do, as pairs of a model's number of parameters and the FLOPs that it takes."""
    suite = plan.suite
    pretraining = TRAIN_FLOPS * _pretraining_tokens(suite) * parameters
    stages = [plan.defenses[spec].stage for spec, _ in left.releases if spec not in left.given]
    if suite.given is None:
        yield parameters, pretraining * (stages.count("pretrain") + len(left.bases))
    else:
        from nftbench.running import given_estimate

        checks = FORWARD_FLOPS * given_estimate.CHECKED_TOKENS * len(left.releases)
        yield parameters, checks * parameters if parameters > LARGE else 0.0
    sweep, measuring = _sweep(suite), FORWARD_FLOPS * DOCUMENTS * FILLED * suite.corpus.block
    for cell in left.cells:
        size = left.size(cell.defense, parameters)
        yield size, size * (sweep if plan.attacks[cell.attack].trains else measuring)


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


def _pretraining_tokens(suite: Suite) -> int:
    return suite.pretraining.steps * suite.pretraining.batch * suite.corpus.block
