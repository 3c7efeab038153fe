"""Networks that come back from a plugin's process compute what they computed there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations
from transformers import GPT2Config, GPT2LMHeadModel

from nftbench.models import returned
from nftbench.models.prefixed import Prefixed
from nftbench.models.prompted import Prompted

IDS = torch.tensor([[5, 3, 8, 2]])


def plain(network: Any) -> nn.Module:
    return network  # type: ignore[no-any-return]


def prefixed(network: Any) -> nn.Module:
    return Prefixed(network, [1], 16)


def prompted(network: Any) -> nn.Module:
    return Prompted(network, [[1, 4]], 16)


def lora(network: Any) -> nn.Module:
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return adapted


def normalised(network: Any) -> nn.Module:
    parametrizations.weight_norm(network.transformer.h[0].attn.c_attn)
    return network  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("wrapped", [plain, prefixed, prompted, lora, normalised])
def test_a_network_is_the_same_after_its_journey(
    tmp_path: Path, activation: str, wrapped: Callable[[Any], nn.Module]
) -> None:
    """Some activations of transformers keep a function on the module, which cannot be sent."""
    config = GPT2Config(
        vocab_size=20,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        activation_function=activation,
        bos_token_id=0,
        eos_token_id=0,
    )
    release = GPT2LMHeadModel(config).eval()
    network = wrapped(copy.deepcopy(release)).eval()
    with torch.no_grad():
        expected = network(input_ids=IDS).logits
        returned.save(network, tmp_path / "network")
        found = returned.load(tmp_path / "network", release, "cpu").eval()
        assert torch.allclose(found(input_ids=IDS).logits, expected, atol=1e-6)
