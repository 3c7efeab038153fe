"""What is left of a plan, and the memory and disk that it takes. Its time is in forecast.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nftbench.contract import Passes
from nftbench.planning import facts, pinning
from nftbench.planning.keys import base_key
from nftbench.planning.plan import Plan
from nftbench.records import disk_budget
from nftbench.records.record import Cell
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.suites.schema import Suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGE = 1_000_000
"""Parameters above which a model's matrices fill a CPU core."""
COPIES = 7
"""Float32 numbers for each parameter while an attack trains all weights: weight, gradient and two moments of AdamW, the
best network so far, and the release in the attack's process and in the referee's."""
CHECKED_COPIES = 5
"""The same while the referee checks a large release's gradients: its weights, a copy in float64, activations. An attack
that trains a part of the weights needs less."""
PROCESS_BYTES = 6e8
"""Memory of a worker with torch and transformers, before any model."""
HELD_COPIES = 3
"""Float32 numbers that the worker holds for each parameter of the base while a defense trains in a process of its own:
2.0 GB were measured for SmolLM2-135M, its process included."""
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
    copies: int = COPIES
    """Float32 numbers for each parameter of a release at one time, while it is attacked."""
    protecting: tuple[float, ...] = ()
    """Bytes that each of `releases` takes while it is made; counted for a given base alone."""

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

    attacks = [plan.attacks[spec] for spec in dict.fromkeys(cell.attack for cell in cells)]
    on_text = any("data" in attack.knowledge for attack in attacks)
    budget, block = plan.suite.budget, plan.suite.corpus.block
    documents = min(budget.batch * block * FILLED, budget.tokens_at_once or math.inf)
    tokens = max(documents, plan.suite.pretraining.batch * block, budget.batch * block * on_text)
    trains_all = any(attack.trains and attack.trained_weights != "part" for attack in attacks)
    trained, size = training_passes(plan), parameters_of(plan.suite)
    return replace(
        left,
        step_bytes=given_estimate.step_bytes(plan.suite, tokens),
        copies=COPIES if trains_all else CHECKED_COPIES,
        protecting=tuple(protecting_bytes(plan.suite, trained(spec), size) for spec, _ in left.releases),
    )


def training_passes(plan: Plan) -> Callable[[Spec], Passes]:
    """How much each defense trains. Each is asked once, an added one in a process of its own."""
    budget = plan.suite.budget
    documents = min(filter(None, (budget.max_train_documents, plan.limit)), default=DOCUMENTS)
    limited = budget.model_copy(update={"max_train_documents": documents})
    described = pinning.with_architecture(with_vocabulary(plan.suite))
    suite = described.model_copy(update={"budget": limited})
    return functools.cache(lambda spec: facts.training_passes(str(spec), suite))


def protecting_bytes(suite: Suite, trained: Passes, parameters: int) -> float:
    """Bytes that a worker takes while a defense trains a given base of so many parameters, as much as it says.

    It is 0 for a defense that does not say what it keeps in memory.
    """
    from nftbench.running import given_estimate

    if not trained.copies:
        return 0.0
    tokens = suite.corpus.block * (trained.blocks_at_once + FILLED * trained.documents_at_once)
    weights = 4 * (HELD_COPIES + trained.copies) * parameters
    return 2 * PROCESS_BYTES + weights + given_estimate.step_bytes(suite, tokens)


def memory_line(left: Left, parameters: int, workers: int) -> str:
    """An estimate of the memory of all workers together, and of the one that needs most."""
    if not left.cells:
        return "nothing is left to run"
    size, most = (memory_bytes(left, parameters, count) / 1e9 for count in (workers, 1))
    largest = _largest(left, parameters)
    many = f"{workers} workers, at most {most:.2g} GB each" if workers > 1 else "1 worker"
    return (
        f"about {size:.2g} GB with {many}, for a model of {largest / 1e6:.3g} M parameters{most_for(left, parameters)}"
    )


def most_for(left: Left, parameters: int) -> str:
    """What takes the most memory, to be added to a sentence; empty where that is an attack."""
    largest = max(left.protecting, default=0.0)
    if largest <= _attacking(left, parameters):
        return ""
    defense, _ = left.releases[left.protecting.index(largest)]
    return f", most of it while {defense} trains"


def memory_bytes(left: Left, parameters: int, workers: int) -> float:
    """Bytes of memory that so many workers need together, if each does the most that it may do.

    That is to attack the largest release, or to make a release that takes more. A release is made by one worker.
    """
    attacking = _attacking(left, parameters)
    more = sorted((size for size in left.protecting if size > attacking), reverse=True)[:workers]
    return sum(more) + (workers - len(more)) * attacking


def _attacking(left: Left, parameters: int) -> float:
    return PROCESS_BYTES + left.copies * 4 * _largest(left, parameters) + left.step_bytes


def _largest(left: Left, parameters: int) -> int:
    return max((left.size(cell.defense, parameters) for cell in left.cells), default=0)


def disk_line(plan: Plan, store: Store, left: Left, parameters: int, workers: int) -> str:
    """An estimate of how much the cache grows, and of what jobs write to it and delete again."""
    released, bases = _new_artifacts(plan, left, parameters)
    size, passing = disk_bytes(plan, left, parameters) / 1e6, passing_bytes(plan, left, parameters, workers) / 1e6
    limit = disk_budget.budget()
    kept = f"; models beyond {limit / 1e9:.3g} GB are deleted and made again (--cache-size)" if limit else ""
    return (
        f"about {size:.3g} MB more in {store.cache}: {len(left.releases)} releases with {released / 1e6:.3g} M "
        f"parameters in all and {bases} bases of {parameters / 1e6:.3g} M, {_width(plan.suite)} bytes each; and up to "
        f"{passing:.3g} MB while jobs run{kept}"
    )


def disk_bytes(plan: Plan, left: Left, parameters: int) -> int:
    """Bytes by which the cache grows, for the releases and bases that it lacks."""
    released, bases = _new_artifacts(plan, left, parameters)
    return _width(plan.suite) * (released + parameters * bases)


def passing_bytes(plan: Plan, left: Left, parameters: int, workers: int) -> int:
    """Bytes that jobs leave in the cache only while they run: a release on its way, and each attacked network."""
    cells = {cell.key for cell in left.cells}
    most = max((sum(cell.key in cells for cell in job.cells) for job in plan.jobs()), default=0)
    return workers * most * 4 * _largest(left, parameters)


def least_bytes(plan: Plan, left: Left, parameters: int, workers: int) -> int:
    """Bytes that the cache must hold at one time: the base, and for each worker a release and its reference."""
    return _width(plan.suite) * (parameters + 2 * workers * _largest(left, parameters))


def _width(suite: Suite) -> int:
    """Bytes of a weight on disk."""
    return 2 if suite.given is not None and suite.given.dtype == "bfloat16" else 4


def _new_artifacts(plan: Plan, left: Left, parameters: int) -> tuple[int, int]:
    """The parameters of all releases that the cache lacks, and the number of bases, kept checkpoints among them.

    A reference row on a given base releases the base as it is, and so takes no space.
    """
    if plan.suite.given is None:
        return sum(left.size(spec, parameters) for spec, _ in left.releases), len(
            {*plan.suite.pretraining.checkpoints, 1.0}
        ) * len(left.bases)
    changed = [spec for spec, _ in left.releases if plan.rows[spec].reference != str(spec)]
    return sum(left.size(spec, parameters) for spec in changed), len(left.bases)


def parameters_of(suite: Suite) -> int:
    """The number of parameters of the suite's model, counted without allocating its weights.

    Raises:
        NftbenchError: the suite's settings describe no valid model.
    """
    if suite.given is not None:
        from nftbench.running import given_estimate

        return given_estimate.checkpoint(suite.given).parameters
    return sum(parameter.numel() for parameter in _outline(with_vocabulary(suite)).parameters())


def with_vocabulary(suite: Suite) -> Suite:
    """The suite with its vocabulary's size in `model`: that of the tokenizer, which a run would have to train first.

    A given base has its own, and models that read no text have none.
    """
    if suite.given is not None or not hasattr(_outline(suite).config, "vocab_size"):
        return suite
    return suite.model_copy(update={"model": {**suite.model, "vocab_size": _vocabulary(suite)}})


def _outline(suite: Suite) -> PreTrainedModel:
    import torch

    from nftbench.models import networks

    with torch.device("meta"):
        return networks.build(suite.model, None, 0, "meta").network


def _vocabulary(suite: Suite) -> int:
    if suite.corpus.vocabulary is not None:
        return suite.corpus.vocabulary
    from nftbench.data.grammar import Grammar

    return len(set(Grammar(suite.corpus.grammar).words()))


def _base(plan: Plan, seed: int) -> str:
    state = plan.suite.pretraining.steps if plan.suite.given is None else "given"
    return f"{base_key(plan.suite, seed, plan.data, plan.device)[:32]}-{state}"
