"""What a pass costs, as a share of a training pass: forwards and backwards, with the gradients of all weights.

A training pass takes 6 FLOPs for each weight and token: 2 forwards, 2 backwards for the activations and 2 for the
weights' gradients (Kaplan et al. 2020, section 2.1). Defenses count with these shares in `training_passes`.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from nftbench.methods.tuning import Trained, outline
from nftbench.suites import Suite

FORWARD = 1 / 3
"""A pass that only goes forwards."""
ACTIVATIONS = 2 / 3
"""A pass that goes backwards for the activations alone, as where an adapter is trained."""
FLOAT64 = 2
"""How many times as long a pass takes in float64."""


def of(trained: Trained) -> float:
    """The share of a training pass that trains an adapter or all weights."""
    return ACTIVATIONS if trained == "lora" else 1.0


def heads(suite: Suite) -> float:
    """The share of a training pass that the output head takes on the embeddings and on the output of each layer.

    It is above 1 where the vocabulary is large: 6.5 for SmolLM2-135M.
    """
    network = outline(suite)
    head = network.get_output_embeddings().weight.numel()
    return float((_layers(network) + 1) * head / network.num_parameters())


def last(blocks: int, suite: Suite) -> float:
    """The share of a training pass that trains the last `blocks` decoder layers; a model without layers is trained
    whole."""
    return FORWARD + (1 - FORWARD) * min(1.0, blocks / max(1, _layers(outline(suite))))


def epoch(suite: Suite, batch: int) -> int:
    """Optimizer steps of one epoch over a task's training documents, without a last batch that is not full."""
    documents = suite.budget.max_train_documents
    assert documents is not None  # a forecast fills it in
    return max(1, documents // batch)


def _layers(network: PreTrainedModel) -> int:
    return int(getattr(network.config, "num_hidden_layers", 0))
