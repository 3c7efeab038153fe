"""BitFit: only the biases are trained, or the gains of the norms in a network without biases.

Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199. Llama and Qwen3 have no biases, and the gains are their only
vectors. The paper also trains the classifier's head, which is new in its setting. Here the language model's head stays
as released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task, TrainedWeights

LR_SCALE = 10.0
"""Vectors alone need higher learning rates. On toy_topic (suite `small`, 100 steps) the best rate of GPT-2 is 0.0015
for all weights and 0.015 for the biases. For a Llama of that size it is 0.004 for all weights and 0.1 for the gains.
Ten times the suite's grid covers both, and the sweep extends it at the edges."""
CHOOSING = ("correction_bias", "expert_bias")
"""Endings of the names of biases that only choose which experts read a token, as in DeepSeek-V3. The loss has no
gradient in them."""


@dataclass(frozen=True)
class Bitfit(Attack):
    trained_weights: ClassVar[TrainedWeights] = "part"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=_vectors_only, lr_scale=LR_SCALE)


def _vectors_only(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
    trainable = ((name, weight) for name, weight in network.named_parameters() if not name.endswith(CHOOSING))
    vectors = {name: weight for name, weight in trainable if weight.ndim == 1}
    biases = [weight for name, weight in vectors.items() if name.endswith("bias")]
    if not vectors:
        raise NftbenchError("bitfit: the network has neither biases nor norms with a gain")
    network.requires_grad_(False)
    for weight in biases or vectors.values():
        weight.requires_grad_(True)
    return network
