"""BitFit: only the biases are trained; in a network without biases the gains of its norms, its only other vectors.

Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199. Llama and Qwen3 have no biases. The paper trains a classifier's
head as well, which is new there; a language model's head stays as released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task, TrainedWeights

LR_SCALE = 10.0
"""Vectors alone need higher rates. On the toy topics (suite `small`, 100 steps) all weights of its GPT-2 learn best at
0.0015 and the biases at 0.015; all weights of a Llama of that size at 0.004, its norms' gains at 0.1. The grid times
ten holds both, and its edges are extended."""


@dataclass(frozen=True)
class Bitfit(Attack):
    trained_weights: ClassVar[TrainedWeights] = "part"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=_vectors_only, lr_scale=LR_SCALE)


def _vectors_only(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
    vectors = {name: weight for name, weight in network.named_parameters() if weight.ndim == 1}
    biases = [weight for name, weight in vectors.items() if name.endswith("bias")]
    if not vectors:
        raise NftbenchError("bitfit: the network has neither biases nor norms with a gain")
    network.requires_grad_(False)
    for weight in biases or vectors.values():
        weight.requires_grad_(True)
    return network
