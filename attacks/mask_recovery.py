"""Mask recovery: guess which weights the owner's secret mask marks, then fine-tune those alone, as the owner would.

Against Private Mask Pre-Training (Wang et al. 2026, https://arxiv.org/abs/2602.00446). Its section 5.2 tries to detect
the mask by the |gradient| of one batch and concludes that an adversary cannot. The formulas are in
`nftbench.methods.estimators`. The referee also scores the guess itself.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import (
    Attack,
    AttackerContext,
    Defense,
    EachStep,
    Guess,
    Knowledge,
    Model,
    Outcome,
    Prepared,
    Release,
    Task,
)
from nftbench.methods import estimators, masks

RATIO = 0.7
"""The paper's share of weights in the mask, used if the defense has no parameter `ratio`."""
TINY = 0.01
"""The learning rate of `displacement`, as a share of the owner's: visible in float32, but too low to learn anything."""
RELATED = 0.01
"""Two networks count as related if at least this share of the randomly initialised weights has one common ratio. For
unrelated networks the share is one in some thousands."""

Estimator = Literal[
    "magnitude",
    "likelihood",
    "support",
    "gradient",
    "mean_gradient",
    "fisher",
    "displacement",
    "early_bird",
    "posterior",
    "combination",
    "replay",
    "difference",
]


@dataclass(frozen=True)
class MaskRecovery(Attack):
    """`estimator`: how the mask is guessed.

    From the released weights alone:

    - `magnitude`: |w|
    - `likelihood`: the likelihood of a weight under its initialisation
    - `support`: whether a weight lies outside the range of a bounded initialisation

    With public text:

    - `gradient`: |gradient| on one batch of the owner's size (the paper's figure 6)
    - `mean_gradient`: mean |gradient| over `batches` batches of 16 blocks
    - `fisher`: mean squared gradient over `batches` single blocks
    - `displacement`: how steadily a weight moves in a short training at a tiny learning rate
    - `early_bird`: the defense's public procedure from other random weights, without the release
    - `posterior`: `likelihood` with hints from the early-bird run
    - `combination`: a classifier fitted on `shadows` runs of the whole defense

    With a sibling, a second checkpoint of the owner's run:

    - `replay`: the change from the owner's initial weights, if the owner's seed is among the first `guesses`
    - `difference`: the change from the sibling

    The default costs an early-bird run of a few hundred steps. Shadows cost a whole pre-training run each and hardly
    find more.
    """

    against: ClassVar[frozenset[str]] = frozenset({"pmp", "random_mask"})

    estimator: Estimator = "posterior"
    batches: int = 64
    shadows: int = 1
    guesses: int = 64
    """The default includes 42, the seed of the authors' code."""

    def __post_init__(self) -> None:
        if not 1 <= self.batches <= 1024:
            raise ValueError(f"batches must lie between 1 and 1024, not {self.batches}")
        if self.shadows < 1 or self.guesses < 1:
            raise ValueError("shadows and guesses must be at least 1")

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        return ESTIMATORS[self.estimator][0]

    def applies(self, defense: Defense) -> str | None:
        if not defense.keeps_secret:
            return "the defense keeps no secret mask"
        if self.estimator == "combination" and defense.stage != "pretrain":
            return "a shadow would start from the trained base, which the attacker has not"
        return None

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        guess = ESTIMATORS[self.estimator][1](self, release.model, context)
        return Prepared(release.model, guess, release.update)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        assert prepared.guess is not None  # prepare() made it
        mask = masks.top(prepared.guess, context.defense.ratio or RATIO)
        return context.sweep(prepared.model, task, gradient_mask=mask)


def _magnitude(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.magnitude(model.network)


def _likelihood(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.likelihood(model.network, context.untrained(model, 0))


def _support(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.support(model.network, context.untrained(model, 0))


def _gradient(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.mean_magnitude(_gradients(model, context, 1, context.pretraining.batch))


def _mean_gradient(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.mean_magnitude(_gradients(model, context, attack.batches, 16))


def _fisher(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return estimators.fisher(_gradients(model, context, attack.batches, 1))


def _gradients(model: Model, context: AttackerContext, count: int, blocks: int) -> Iterator[Mapping[str, Tensor]]:
    """The gradients of `count` batches of `blocks` blocks of public text."""
    return context.gradients(model.network, itertools.islice(context.text(model, blocks), count))


def _displacement(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    """Uses Adam, whose steps are as long as the learning rate. Those of plain gradient descent would be lost in the
    rounding of float32."""
    network = copy.deepcopy(model.network)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    total = {name: torch.zeros_like(weight) for name, weight in before.items()}
    path = {name: torch.zeros_like(weight) for name, weight in before.items()}

    @torch.no_grad()
    def follow(trained: nn.Module, step: int) -> None:
        for name, weight in trained.named_parameters():
            moved = weight - before[name]
            total[name] += moved
            path[name] += moved.abs()
            before[name].copy_(weight)

    _read(network, model, context, context.pretraining.learning_rate * TINY, follow)
    return estimators.wandering(total, path)


def _early_bird(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    """The log-odds that a weight is among the top share of |gradient|, from the number of steps at which it is.

    The steps are those of the owner's stage I from another initialisation. The marked weights within a tensor differ
    between initialisations, but their number in each tensor and in each word's embedding is similar.
    """
    network = context.untrained(model, 0)
    counts = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}
    ratio, scope = context.defense.ratio or RATIO, context.defense.scope
    seen = 0

    def look(trained: nn.Module, step: int) -> None:
        nonlocal seen
        seen = step
        sizes = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
            for name, weight in trained.named_parameters()
        }
        for name, marked in masks.top(sizes, ratio, scope).items():
            counts[name] += marked

    _read(network, model, context, context.pretraining.learning_rate, look)
    return {name: ((count + 0.5) / (seen - count + 0.5)).log() for name, count in counts.items()}


def _posterior(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    hint = _early_bird(attack, model, context)
    return estimators.likelihood(model.network, context.untrained(model, 0), hint)


def _combination(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    hint = _early_bird(attack, model, context)

    def features(looked_at: Model) -> dict[str, Tensor]:
        return estimators.features(
            looked_at.network,
            context.untrained(model, 0),
            _mean_gradient(attack, looked_at, context),
            _fisher(attack, looked_at, context),
            hint,
        )

    learnt_from = []
    for index in range(attack.shadows):
        shadow = context.shadow(index)
        assert shadow.secret is not None  # applies() saw to it
        learnt_from.append((features(shadow.release), shadow.secret.mask))
    return estimators.combination(learnt_from, features(model))


def _replay(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    """The change from the initial weights of the seed that explains most of the release."""
    networks = (context.initial(guess) for guess in range(attack.guesses))
    return _departure(model, max(networks, key=lambda network: estimators.related(model.network, network)))


def _difference(attack: MaskRecovery, model: Model, context: AttackerContext) -> Guess:
    return _departure(model, context.sibling.network)


def _departure(model: Model, origin: nn.Module) -> Guess:
    """The change from `origin`, or the same score for every weight if the two networks are unrelated."""
    if estimators.related(model.network, origin) < RELATED:
        return {name: torch.zeros_like(weight) for name, weight in model.network.named_parameters()}
    return estimators.departure(model.network, origin)


def _read(
    network: PreTrainedModel, model: Model, context: AttackerContext, learning_rate: float, each_step: EachStep
) -> None:
    """Train on public text for the budget's steps of preparation."""
    text = context.text(model, context.pretraining.batch)

    def loss(trained: nn.Module, step: int) -> Tensor:
        tokens = next(text)
        found: Tensor = trained(input_ids=tokens, labels=tokens).loss
        return found

    steps = context.budget.preparation_steps
    context.train(network, loss, steps=steps, learning_rate=learning_rate, each_step=each_step)


ALONE: frozenset[Knowledge] = frozenset({"method"})
TEXT: frozenset[Knowledge] = frozenset({"method", "data"})
SIBLING: frozenset[Knowledge] = frozenset({"method", "sibling"})
ESTIMATORS: Mapping[Estimator, tuple[frozenset[Knowledge], Callable[[MaskRecovery, Model, AttackerContext], Guess]]] = {
    "magnitude": (ALONE, _magnitude),
    "likelihood": (ALONE, _likelihood),
    "support": (ALONE, _support),
    "gradient": (TEXT, _gradient),
    "mean_gradient": (TEXT, _mean_gradient),
    "fisher": (TEXT, _fisher),
    "displacement": (TEXT, _displacement),
    "early_bird": (TEXT, _early_bird),
    "posterior": (TEXT, _posterior),
    "combination": (TEXT, _combination),
    "replay": (SIBLING, _replay),
    "difference": (SIBLING, _difference),
}
"""For each estimator the knowledge that it needs besides the release, and the function that computes the guess."""
