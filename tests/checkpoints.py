"""Small networks with random weights, and checkpoints of them on disk, as a publisher hands them in."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from nftbench.data.corpus import byte_pair_tokenizer, word_tokenizer
from nftbench.data.grammar import Grammar
from nftbench.models import networks
from nftbench.testing import ARCHITECTURES

WEIGHTS = "model.safetensors"
READ = ["the movie was good , and the day was long .\n", f"{' '.join(string.ascii_lowercase)} .\n"] * 20
"""The text of byte-level tokenizers. Words that begin with different letters begin with different tokens."""
_LLAMA = ARCHITECTURES["llama"]
SHAPES: dict[str, dict[str, Any]] = {
    **ARCHITECTURES,
    "gpt_neox": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "mixtral": {**_LLAMA, "num_local_experts": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}
MORE_SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "head_dim": 8, "sliding_window": 16},
    "olmo2": _LLAMA,
    "gemma3_text": {**_LLAMA, "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention"]},
    "phi": {**_LLAMA, "num_key_value_heads": 2},
    "phi3": {**_LLAMA, "pad_token_id": 0},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    "qwen3_moe": {
        **_LLAMA,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    "gpt_oss": {
        **_LLAMA,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["full_attention"],
    },
    "falcon": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 64},
    "phimoe": {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": {
        **_LLAMA,
        "head_dim": 8,
        "intermediate_size_mlp": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "moe_layers": [0],
        "attention_chunk_size": 32,
    },
    "deepseek_v3": {
        **_LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "mamba2": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "falcon_h1": {
        **_LLAMA,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
    "falcon_mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "jamba": {
        **_LLAMA,
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
    },
}
"""Further architectures that a user may bring."""


def fresh(kind: str = "gpt2", words: int = 50, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A network with random weights that knows so many words; `changes` are of its configuration."""
    settings = {"model_type": kind, **(SHAPES | MORE_SHAPES)[kind], "vocab_size": words, **changes}
    return networks.build(settings, None, seed, "cpu").network


def write(folder: Path, kind: str = "gpt2", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with random weights and the tokenizer of the toy language; `changes` are of its configuration."""
    settings = {"model_type": kind, **(SHAPES | MORE_SHAPES)[kind], **changes}
    networks.save(networks.build(settings, word_tokenizer(Grammar(0).words()), seed, "cpu"), folder)
    return folder


def write_reader(folder: Path, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with random weights that reads any text, by a byte-level tokenizer of its own."""
    settings = {"model_type": kind, **(SHAPES | MORE_SHAPES)[kind], **changes}
    tokenizer = byte_pair_tokenizer(READ, 300)
    networks.save(networks.build(settings, tokenizer, seed, "cpu"), folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Write what `change` makes of the tensors of a checkpoint."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    change: Callable[[dict[str, np.ndarray]], object] = lambda _: None,
    with_tokenizer: bool = True,
    **fields: Any,
) -> Path:
    """A tiny Llama as a GGUF file.

    Args:
        architecture: what the file says that it is.
        change: edits its tensors, by their names in GGUF.
        fields: further fields of the header, with `__` for a dot.
    """
    import gguf

    tokenizer = byte_pair_tokenizer(READ, 300)
    words, rules = tokenizer.get_vocab(), json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    draw = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return draw.normal(0, 0.02, shape).astype(np.float32)

    tensors = {"token_embd": matrix(len(words), 16), "output": matrix(len(words), 16), "output_norm": np.ones(16)}
    tensors |= {f"blk.0.{name}_norm": np.ones(16) for name in ("attn", "ffn")}
    tensors |= {"blk.0.attn_q": matrix(16, 16), "blk.0.attn_k": matrix(8, 16), "blk.0.attn_v": matrix(8, 16)}
    tensors |= {"blk.0.attn_output": matrix(16, 16), "blk.0.ffn_gate": matrix(32, 16), "blk.0.ffn_up": matrix(32, 16)}
    tensors |= {"blk.0.ffn_down": matrix(16, 32)}
    change(tensors)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(words))
    for name, value in fields.items():
        key = name.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    if with_tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(words, key=lambda word: words[word]))
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in rules["merges"]])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_to_hub_cache(cache: Path, repository: str, write_files: Callable[[Path], object]) -> str:
    """A snapshot in the layout of the hub's cache, with the branch `main` at it. Returns its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = cache / f"models--{repository.replace('/', '--')}"
    folder = model / "snapshots" / commit
    folder.mkdir(parents=True)
    write_files(folder)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return commit
