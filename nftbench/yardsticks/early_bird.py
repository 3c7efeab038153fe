"""Early bird: how soon PMP's mask of large gradients stabilises, and whether it can be found again from public steps.

The referee runs stage I of PMP (https://arxiv.org/abs/2602.00446) from the release's initial weights, on batches in a
new order. Stage I is pre-training at a constant rate, as in the authors' code, and the mask of a step marks the largest
|gradient| over all weights. The paper stops when five pairs of consecutive masks in a row overlap by an IoU of at least
0.99.
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
    """Trains for `steps` steps of `batch` blocks by AdamW at `learning_rate`, without weight decay. The masks have the
    size of the secret mask.

    - `iou_reached`: the highest IoU that `patience` consecutive pairs of masks all reached; the paper asks for 0.99
    - `iou_last`: the mean IoU of the last `patience` pairs
    - `iou_secret_first`, `iou_secret_last`: the IoU of the secret mask with the first and with the last mask
    - `iou_chance`: the expected IoU of two random masks of this size
    """

    steps: int = 500
    batch: int = 32
    learning_rate: float = 1e-3
    patience: int = 5

    def __post_init__(self) -> None:
        if self.steps <= self.patience or min(self.batch, self.patience) < 1:
            raise ValueError("steps must be more than patience; batch and patience at least 1")

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
        """The mask of `count` weights at each step of training `network`."""
        stepper = Stepper(
            network.train(),
            "adamw",
            self.learning_rate,
            factor=lambda step: 1.0,
            weight_decay=0.0,
            clip=1.0,
        )
        batches = token_batches(inspection.corpus.train, self.batch, inspection.seed, str(network.device))
        for _, tokens in zip(range(self.steps), batches, strict=False):
            stepper.step(network(input_ids=tokens, labels=tokens).loss)
            # The gradient was computed before the step, so the first mask belongs to the initial weights.
            sizes = {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
                for name, weight in network.named_parameters()
            }
            yield masks.largest(sizes, count)
