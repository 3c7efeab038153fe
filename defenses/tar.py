"""TAR: attacks are simulated in training, and the model moves to where they end badly.

Tamirisa et al. 2024, "Tamper-Resistant Safeguards for Open-Weight LLMs" (ICLR 2025), https://arxiv.org/abs/2408.00761,
section 4, algorithm 1, to first order as the authors do. Before it an initial safeguard, *random mapping*, turns hidden
states at harmful answers into random directions.

Each outer step fine-tunes a copy on harmful answers for `inner_steps` steps. At every fourth of them it takes the
gradient, at the copy's weights, of the negative entropy of the answers in a held-out batch. These gradients are added,
the later ones with more weight, to the gradient that keeps text: its loss, and the distance of all hidden states to
those of the undefended model.

Differences from the authors' code (rishub-tamirisa/tamper-resistance, commit 19de233, run_tar_bio.sh):

- Their outer optimizer is schedule-free AdamW. Ours is AdamW with their warm-up and then a constant rate.
- They draw an attacker from two harmful corpora and a switch from retained to harmful data, with a third each. Here one
  task takes the place of both corpora.
- Entropy and random mapping look at all tokens of their harmful text, ours at the answers. Prompts here are ordinary
  text, which should stay as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Model, OwnerContext, Passes, Protected, Suite
from nftbench.methods import Stepper, passes, seeded, warmed
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.curves import curves
from nftbench.methods.gradient_vectors import gradient, weights_of, with_gradient
from nftbench.methods.harmful_pairs import HarmfulPairs, Masked, Pair, cross_entropy
from nftbench.methods.task_aware import AgainstTask

RATES = (0.1, 1.0, 2.0)
"""An attacker's learning rate as a multiple of `adversary_rate`. The authors draw from 2e-6, 2e-5 and 4e-5."""
SWITCHING = 1 / 3
"""The share of attackers that train on text first, for a share of their steps drawn from Beta(6, 3)."""
HELD_OUT = 0.2
"""The share of the harmful pairs that no simulated attacker trains on."""
EVERY = 4
"""One in so many inner steps is followed by a gradient of the entropy."""
LATER = 0.0625
"""The weight of inner step i of K, counted from 0, is exp(LATER · (i - (K - 1)))."""


@dataclass(frozen=True)
class Tar(AgainstTask):
    """`strength`: weight of the entropy under attack. `retain`: weight of the text. `mapping_steps`: optimizer steps of
    random mapping. `adversary_rate`: see `RATES`.

    The defaults are those of the authors' code for Llama-3-8B, whose 750 outer steps take 48,000 inner ones. Their
    random mapping (modules/baselines.py) has half this learning rate, and eight times the batch.
    """

    strength: float = 4.0
    retain: float = 1.0
    learning_rate: float = 2e-5
    steps: int = 750
    warmup: int = 32
    batch: int = 8
    inner_steps: int = 64
    adversary_rate: float = 2e-5
    adversary_batch: int = 4
    mapping_steps: int = 1000

    def __post_init__(self) -> None:
        if min(self.strength, self.retain, self.warmup, self.mapping_steps) < 0:
            raise ValueError("strength, retain, warmup and mapping_steps must be at least 0")
        if min(self.learning_rate, self.adversary_rate) <= 0:
            raise ValueError("learning rates must be above 0")
        if min(self.steps, self.batch, self.adversary_batch) < 1 or self.inner_steps < EVERY:
            raise ValueError(f"steps and batches must be at least 1, inner_steps at least {EVERY}")

    def control_row(self) -> str | None:
        """The initial safeguard and the same outer steps without any simulated attack."""
        return self.row(strength=0.0) if self.strength else None

    def training_passes(self, suite: Suite) -> Passes:
        mapped, kept = self.mapping_steps * self.batch, self.steps * self.batch * (1 + passes.FORWARD)
        if not self.strength:
            return Passes(blocks=mapped + kept, documents=mapped, blocks_at_once=self.batch, copies=8)
        inner = self.steps * self.inner_steps
        on_text = SWITCHING * 6 / (6 + 3) * inner * self.adversary_batch  # the mean of Beta(6, 3)
        attacked = inner * self.adversary_batch - on_text + inner // EVERY * self.batch
        return Passes(blocks=mapped + kept + on_text, documents=mapped + attacked, blocks_at_once=self.batch, copies=13)

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network = model.network.train()
        base = copy.deepcopy(network).requires_grad_(False).eval()
        attacked, held_out = HarmfulPairs.of(context.task(self.harmful)).parted(HELD_OUT)
        text = text_batches(context, self.batch, network.device)
        # A stream of their own: the control, which simulates no attacker, then retains the same text.
        attackers_text = text_batches(context, self.adversary_batch, network.device)
        curve: list[tuple[float, ...]] = []
        with seeded(context.seed):
            self.map_at_random(network, attacked, text, context.seed)
            stepper = self.stepper(network)
            weights = weights_of(network)
            attackers = np.random.default_rng([context.seed, 1])
            train = attacked.batches(self.adversary_batch, context.seed, network.device)
            held = held_out.batches(self.batch, context.seed + 1, network.device)
            for _, tokens, pair in zip(range(self.steps), text, held, strict=False):
                kept = retained_loss(network, base, tokens)
                total = [self.retain * part for part in gradient(kept, weights)]
                value = 0.0
                if self.strength:
                    attacker = self.draw(attackers)
                    found = under_attack(network, self.attack(attacker, train, attackers_text), pair.harmful, attacker)
                    total = [one + self.strength * other for one, other in zip(total, found.gradient, strict=True)]
                    value = found.entropy
                stepper.step(with_gradient(weights, total))
                curve.append((kept.item(), value))
        network.eval()
        names = ("text loss and distance to the base", "entropy after the attack")
        return Protected(model, series=curves(names, curve))

    def stepper(self, network: nn.Module) -> Stepper:
        return Stepper(
            network,
            "adamw",
            self.learning_rate,
            factor=lambda step: warmed(step, self.warmup),
            weight_decay=0.0,
            clip=None,
        )

    def map_at_random(self, network: PreTrainedModel, pairs: HarmfulPairs, text: Iterator[Tensor], seed: int) -> None:
        """The initial safeguard: `mapping_loss` and the loss on text. Directions come from torch's random numbers."""
        width = network.get_input_embeddings().weight.shape[1]
        directions = torch.randn(network.get_input_embeddings().weight.shape[0], width, device=network.device)
        stepper = self.stepper(network)
        batches = zip(range(self.mapping_steps), pairs.batches(self.batch, seed, network.device), text, strict=False)
        for _, pair, tokens in batches:
            stepper.step(text_loss(network, tokens) + mapping_loss(network, pair.harmful, directions))

    def draw(self, source: np.random.Generator) -> Attacker:
        """A simulated attacker."""
        switch = source.random() < SWITCHING
        on_text = int(source.beta(6, 3) * self.inner_steps) if switch else 0
        return Attacker(self.adversary_rate * float(source.choice(RATES)), on_text, self.inner_steps)

    def attack(self, attacker: Attacker, pairs: Iterator[Pair], text: Iterator[Tensor]) -> list[Tensor | Masked]:
        """What the attacker trains on, one batch a step: text [batch, block] at first, then harmful answers."""
        return [next(text) if step < attacker.on_text else next(pairs).harmful for step in range(attacker.steps)]


@dataclass(frozen=True)
class Attacker:
    """A simulated attacker: its learning rate, how many of its steps are on text, and how many it takes."""

    learning_rate: float
    on_text: int
    steps: int


class UnderAttack(NamedTuple):
    """The weighted sum of the gradients of the negative entropy along an attack, one tensor a weight, and the entropy
    in nats at its end."""

    gradient: Sequence[Tensor]
    entropy: float


def under_attack(
    network: PreTrainedModel, batches: Sequence[Tensor | Masked], held_out: Masked, attacker: Attacker
) -> UnderAttack:
    """Attack a copy with a fresh AdamW and collect gradients at its weights. The network itself does not change."""
    copied = copy.deepcopy(network)
    weights = weights_of(copied)
    optimizer = torch.optim.AdamW(weights, lr=attacker.learning_rate)
    total = [torch.zeros_like(weight) for weight in weights]
    value = torch.zeros(())
    for step, batch in enumerate(batches):
        loss = (
            text_loss(copied, batch)
            if isinstance(batch, Tensor)
            else cross_entropy(copied(input_ids=batch.inputs).logits, batch)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % EVERY == 0:
            value = entropy(copied, held_out)
            factor = float(np.exp(LATER * (step - (attacker.steps - 1))))
            total = [one - factor * other for one, other in zip(total, gradient(value, weights), strict=True)]
    return UnderAttack(total, value.item())


def entropy(network: PreTrainedModel, sequences: Masked) -> Tensor:
    """Mean entropy, in nats, of the predictions of the tokens in M."""
    scores: Tensor = network(input_ids=sequences.inputs).logits[sequences.mask].log_softmax(-1)
    return -(scores.exp() * scores).sum(-1).mean()


def retained_loss(network: PreTrainedModel, base: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The loss on text [batch, block], plus the distance between the hidden states of network and base, averaged over
    tokens and over the embeddings and all layers."""
    with torch.no_grad():
        wanted = base(input_ids=tokens, output_hidden_states=True).hidden_states
    found = network(input_ids=tokens, labels=tokens, output_hidden_states=True)
    apart = [(own - other).norm(dim=-1).mean() for own, other in zip(found.hidden_states, wanted, strict=True)]
    loss: Tensor = found.loss + torch.stack(apart).mean()
    return loss


def mapping_loss(network: PreTrainedModel, sequences: Masked, directions: Tensor) -> Tensor:
    """1 - |cos(h, r)|, averaged over the positions that predict M, and over the embeddings and all layers.

    h is a hidden state [width] and r the random direction of the token that was read there, a row of `directions`
    [vocabulary, width].
    """
    states = network(input_ids=sequences.inputs, output_hidden_states=True).hidden_states
    wanted = directions[sequences.inputs[sequences.mask]]
    cosines = [nn.functional.cosine_similarity(state[sequences.mask], wanted, dim=-1) for state in states]
    return torch.stack([(1 - cosine.abs()).mean() for cosine in cosines]).mean()
