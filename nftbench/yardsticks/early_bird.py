"""Early bird: how soon the mask of large gradients settles, and whether it can be found again without the owner.

PMP's stage I (https://arxiv.org/abs/2602.00446), run by the referee from the release's initial weights on batches in an
order of its own: warm-up pre-training, each step's mask the top share of |gradient| over all weights on that step's
batch. The paper ends it where consecutive masks overlap by an IoU of 0.99 or more five times in a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from nftbench import Defense, Inspection, Mask, Reading, Series, Yardstick
from nftbench.methods import Stepper, masks, seeded, token_batches


@dataclass(frozen=True)
class EarlyBird(Yardstick):
    """AdamW without weight decay at `learning_rate`, reached after `warmup` of the `steps`, `batch` blocks a step.
    The masks are as large as the secret one.

    `iou_reached`: the highest IoU that `patience` pairs of consecutive masks in a row all had, to be held against 0.99;
    `iou_last`: the mean of the last `patience` pairs. `iou_secret_first`, `iou_secret_last`: the secret mask with the
    mask at initialisation, and with the last one; `iou_chance`: what two random masks of that size have.
    """

    steps: int = 500
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    patience: int = 5

    def __post_init__(self) -> None:
        if self.steps <= self.patience or min(self.batch, self.warmup, self.patience) < 1:
            raise ValueError("steps must be more than patience; batch, warmup and patience at least 1")

    def applies(self, defense: Defense) -> str | None:
        return None if defense.keeps_secret else "the defense keeps no secret mask"

    def measure(self, inspection: Inspection) -> Reading:
        assert inspection.secret is not None  # applies() saw to it
        network = copy.deepcopy(inspection.initial.network)
        secret = {name: inspection.secret.mask[name].to(network.device) for name, _ in network.named_parameters()}
        count = sum(int(marked.sum()) for marked in secret.values())
        consecutive: list[float] = []
        to_secret: list[float] = []
        last: Mask | None = None
        with seeded(inspection.seed):
            for candidate in self.candidates(network, inspection, count):
                to_secret.append(masks.overlap(candidate, secret))
                if last is not None:
                    consecutive.append(masks.overlap(candidate, last))
                last = candidate
        windows = [consecutive[end - self.patience : end] for end in range(self.patience, len(consecutive) + 1)]
        density = count / sum(marked.numel() for marked in secret.values())
        values = {
            "iou_reached": max(map(min, windows)),
            "iou_last": sum(windows[-1]) / self.patience,
            "iou_secret_first": to_secret[0],
            "iou_secret_last": to_secret[-1],
            "iou_chance": density / (2 - density),
        }
        steps = tuple(float(step) for step in range(1, self.steps + 1))
        curves = (
            Series("IoU of consecutive masks", steps[1:], tuple(consecutive), y_label="IoU"),
            Series("IoU with the secret mask", steps, tuple(to_secret), y_label="IoU"),
        )
        return Reading(values, curves)

    def candidates(self, network: PreTrainedModel, inspection: Inspection, count: int) -> Iterator[Mask]:
        """Each step's mask of `count` weights; `network` is trained meanwhile."""
        stepper = Stepper(
            network.train(),
            "adamw",
            self.learning_rate,
            factor=lambda step: min(1.0, step / self.warmup),
            weight_decay=0.0,
            clip=1.0,
            betas=(0.9, 0.95),
        )
        batches = token_batches(inspection.corpus.train, self.batch, inspection.seed, str(network.device))
        for _, tokens in zip(range(self.steps), batches, strict=False):
            stepper.step(network(input_ids=tokens, labels=tokens).loss)
            # The gradient is the one before the step, so that the first mask is that of the initial weights.
            sizes = {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
                for name, weight in network.named_parameters()
            }
            yield masks.largest(sizes, count)
