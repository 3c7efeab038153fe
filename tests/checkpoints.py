"""Small checkpoints on disk, as a publisher hands them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from nftbench.data.corpus import byte_pair_tokenizer, word_tokenizer
from nftbench.data.grammar import Grammar
from nftbench.models import networks
from nftbench.testing import ARCHITECTURES

WEIGHTS = "model.safetensors"
SHAPES = {
    **ARCHITECTURES,
    "gpt_neox": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "mixtral": {**ARCHITECTURES["llama"], "num_local_experts": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}


def write(folder: Path, kind: str = "gpt2", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with random weights and the tokenizer of the toy language; `changes` are of its configuration."""
    settings = {"model_type": kind, **SHAPES[kind], **changes}
    networks.save(networks.build(settings, word_tokenizer(Grammar(0).words()), seed, "cpu"), folder)
    return folder


def write_reader(folder: Path, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with random weights that reads any text, by a byte-level tokenizer of its own."""
    settings = {"model_type": kind, **SHAPES[kind], **changes}
    tokenizer = byte_pair_tokenizer(["the movie was good , and the day was long .\n"] * 20, 300)
    networks.save(networks.build(settings, tokenizer, seed, "cpu"), folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Write what `change` makes of the tensors of a checkpoint."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder
