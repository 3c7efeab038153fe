"""What a given base takes, beside steps × tokens × parameters: activations of a step, and the referee's checks.

A large vocabulary and many layers make the activations as large as the weights, which is not so in the toy models.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from nftbench.methods import passes
from nftbench.models import networks
from nftbench.running import preflight
from nftbench.running.preflight import Checkpoint
from nftbench.suites.schema import GivenModel, Suite

CHECKED_TOKENS = 12_000
"""Tokens of forward passes that cost as much as the referee's checks of one large release. The gradient check alone
took 19 CPU-seconds on a Llama of SmolLM2's shape with 163 million parameters; reading plain text adds to it."""


def checkpoint(given: GivenModel) -> Checkpoint:
    """What is known of a base before a weight is read. A process looks once."""
    return _checkpoint(given.path, given.revision, given.sha256)


def step_bytes(suite: Suite, tokens: float) -> float:
    """Bytes that one training step on so many tokens takes beside weights, gradients and moments.

    It is 0 for a configuration that names no width or number of layers.
    """
    assert suite.given is not None
    fields = _settings(suite.given.path, suite.given.revision, suite.given.sha256)
    fields = {**fields, **(fields.get("text_config") or {})}  # that of a model which reads images too
    width, layers = (fields.get(name) for name in ("hidden_size", "num_hidden_layers"))
    if width is None or layers is None:
        return 0.0
    return float(4 * tokens * passes.kept(layers, width, fields["vocab_size"]))


@functools.cache
def _checkpoint(path: str, revision: str | None, pin: str | None) -> Checkpoint:
    return preflight.examine(path, revision)


@functools.cache
def _settings(path: str, revision: str | None, pin: str | None) -> dict[str, Any]:
    return networks.settings_of(Path(path) if Path(path).exists() else path, revision)
