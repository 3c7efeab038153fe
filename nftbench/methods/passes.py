"""What a pass costs, as a share of a training pass: forwards and backwards, with the gradients of all weights.

A training pass takes 6 FLOPs for each weight and token: 2 forwards, 2 backwards for the activations and 2 for the
weights' gradients (Kaplan et al. 2020, section 2.1). Defenses count with these shares in `training_passes`. Beside them
are shares of what a pass keeps in memory.
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
LAYER_NUMBERS = 34
"""Float32 numbers that one layer saves for each token and unit of width, in a step with fused attention. A LoRA step of
SmolLM2-135M (30 layers of width 576) on 1,024 tokens peaked at 4.3 GB, of which 2.5 GB are neither process, weights nor
logits."""
LOGIT_COPIES = 3
"""Logits, their log-softmax, and their gradient."""


def of(trained: Trained) -> float:
    """The share of a training pass that trains an adapter or all weights."""
    return ACTIVATIONS if trained == "lora" else 1.0


def trained_copies(trained: Trained) -> float:
    """Float32 numbers for each weight that training keeps beside the weights: a gradient and two moments of AdamW, or
    next to none for an adapter."""
    return 0.0 if trained == "lora" else 3.0


def heads(suite: Suite) -> float:
    """The share of a training pass that the output head takes on the embeddings and on the output of each layer.

    It is above 1 where the vocabulary is large: 6.5 for SmolLM2-135M.
    """
    network = outline(suite)
    head = network.get_output_embeddings().weight.numel()
    return float((_layers(network) + 1) * head / network.num_parameters())


def kept_by_heads(suite: Suite) -> float:
    """The share of what a training pass keeps in memory that is kept by the output head on the embeddings and on the
    output of each layer: logits and their log-softmax. It is about 4 for SmolLM2-135M.
    """
    network = outline(suite)
    vocabulary, width = network.get_output_embeddings().weight.shape
    layers = _layers(network)
    return float(2 * (layers + 1) * vocabulary / kept(layers, width, vocabulary))


def kept(layers: int, width: int, vocabulary: int) -> int:
    """Float32 numbers that a training pass keeps in memory for each token."""
    return LAYER_NUMBERS * layers * width + LOGIT_COPIES * vocabulary


def last(blocks: int, suite: Suite) -> float:
    """The share of a training pass that trains the last `blocks` decoder layers; a model without layers is trained
    whole."""
    return FORWARD + (1 - FORWARD) * share_of_last(blocks, suite)


def share_of_last(blocks: int, suite: Suite) -> float:
    """The last `blocks` decoder layers as a share of all; 1 for a model without layers."""
    return min(1.0, blocks / max(1, _layers(outline(suite))))


def epoch(suite: Suite, batch: int) -> int:
    """Optimizer steps of one epoch over a task's training documents, without a last batch that is not full."""
    documents = suite.budget.max_train_documents
    assert documents is not None  # a forecast fills it in
    return max(1, documents // batch)


def _layers(network: PreTrainedModel) -> int:
    return int(getattr(network.config, "num_hidden_layers", 0))
