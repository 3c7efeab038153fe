"""The tiny suite that every check runs on, the folder it runs in, and what a task is loaded with there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nftbench import suites
from nftbench.contract import Model, TaskContext
from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running.workspace import TaskSetting, Workspace, make_corpus
from nftbench.suites.schema import Suite

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 64,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
}
"""Settings of a tiny model, by model type. GPT-2 has tied embeddings and fused attention matrices; Llama shares keys
and values among queries; Qwen3 does so too, and has norms on queries and keys."""


def tiny_suite(architecture: str = "gpt2", **changes: Any) -> Suite:
    """A suite that runs in a second: one layer of width 16, 300 sentences of the toy language, 20 steps.

    `changes` are fields of the suite; a mapping is laid over the section that it names.
    """
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {"model_type": architecture, **ARCHITECTURES[architecture]},
        "corpus": {"sentences": 300, "heldout_blocks": 16},
        "pretraining": {"steps": 20, "batch": 8, "warmup": 4, "learning_rate": 3e-3, "checkpoints": [0.5]},
        "defenses": ["none"],
        "attacks": ["none"],
        "tasks": ["toy_topic"],
        "utility": ["toy_agreement_pronoun"],
        "budget": {
            "learning_rates": {kind: [1e-3, 1e-2] for kind in ("adamw", "sgd", "muon")},
            "durations": [2, 4],
            "batch": 8,
            "warmup": 1,
            "extension": 1,
            "preparation_steps": 5,
            "max_train_documents": 32,
            "max_validation_documents": 40,
            "max_test_documents": 40,
            "max_utility_documents": 40,
        },
        "seeds": [0],
    }
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, Mapping) else value
    if content["corpus"].get("source", "toy") == "toy":
        content.setdefault("salt", "public")
    return suites.parse(content, "tiny")


@contextlib.contextmanager
def temporary_workspace(suite: Suite, data: Path | None = None) -> Iterator[Workspace]:
    """The suite's plan, with results and a cache in a temporary folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="nftbench-") as folder:
        store = Store(Path(folder) / "results", Path(folder) / "cache")
        yield Workspace(plan(suite, data=data), store, trust_code=True)  # an author trusts the plugin


def task_context(workspace: Workspace, model: Model) -> TaskContext:
    """What `Task.load` is given for this model, with data seed 0."""
    return TaskSetting(
        model, 0, workspace.suite, workspace.plan.data, None, lambda: make_corpus(workspace, 0, "scored")
    )
