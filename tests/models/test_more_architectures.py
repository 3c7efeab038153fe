"""Architectures that no table names: an attacker can open, train and adapt each of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench.methods import adapters
from nftbench.models import networks
from nftbench.models.copies import copied
from nftbench.running import preflight
from nftbench.running.releases import _check_published
from tests import checkpoints

ONE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
TWO = {**ONE, "num_hidden_layers": 2}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
ROTARY_GPT = {**GPT, "rotary_dim": 4}
SLIDING = {**ONE, "sliding_window": 16}
HEADS = {**ONE, "head_dim": 8}
WINDOWED = {**HEADS, "sliding_window": 16}
EXPERTS = {**ONE, "num_local_experts": 2, "num_experts_per_tok": 1}
SHARED = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
STATES = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
LINEAR = {f"linear_num_{kind}_heads": 2 for kind in ("value", "key")} | {
    f"linear_{kind}_head_dim": 8 for kind in ("value", "key")
}
DENSE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("arcee", "apertus", "cohere", "granite", "nemotron", "olmo", "smollm3", "stablelm"), ONE),
    **dict.fromkeys(("ernie4_5", "gemma", "helium", "seed_oss"), HEADS),
    **dict.fromkeys(("gemma2", "ministral"), WINDOWED),
    **dict.fromkeys(("cohere2", "olmo3", "starcoder2"), SLIDING),
    "glm4": {**HEADS, "pad_token_id": 0},
    "gpt_bigcode": GPT,
    **dict.fromkeys(("codegen", "gptj"), ROTARY_GPT),
}
OTHERS: dict[str, dict[str, Any]] = {
    **{kind: checkpoints.MORE_SHAPES[kind] for kind in ("falcon", "llama4_text", "mpt", "phimoe")},
    "granitemoe": EXPERTS,
    "jetmoe": {**EXPERTS, "kv_channels": 8},
    "olmoe": {**ONE, "num_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {**ONE, **SHARED},
    "bamba": {**TWO, **STATES, "attn_layer_indices": [1], "mamba_n_groups": 1},
    "falcon_mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "jamba": {**TWO, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}
    | {"num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "pad_token_id": 0},
    "granitemoehybrid": {**EXPERTS, **TWO, **STATES, "layer_types": ["mamba", "attention"]}
    | {"shared_intermediate_size": 32},
    "qwen3_next": {**HEADS, **TWO, **SHARED, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {name: value for name, value in HEADS.items() if name != "max_position_embeddings"}
    | {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 16},
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    | {"context_length": 64},
}


@pytest.mark.parametrize("kind", [*DENSE, *OTHERS])
def test_an_architecture_is_opened_trained_and_adapted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MORE_SHAPES", {**checkpoints.MORE_SHAPES, **DENSE, **OTHERS})
    folder = checkpoints.write_reader(tmp_path, kind)
    found = preflight.examine(str(folder))
    assert (found.architecture, found.words) == (kind, 300)
    model = networks.load(folder, attacker=True)
    _check_published(folder, model)
    rows = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    shown = torch.ones_like(rows)
    shown[0, 12:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied embeddings
        adapted = adapters.lora(copied(model.network), 1, 2.0)
    for network in (adapted.train(), copied(model.network).train()):
        network(input_ids=rows, attention_mask=shown).logits.float().logsumexp(-1).mean().backward()
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        assert any(gradient.any() for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        whole, cut = (model.network(input_ids=some).logits for some in (rows, rows[:, :-1]))
    assert torch.allclose(whole[:, :-1], cut, atol=1e-4), "it reads in one direction"
