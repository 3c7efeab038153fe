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
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nftbench.models import networks, returned
from nftbench.models.prefixed import Prefixed
from nftbench.models.prompted import Prompted
from tests import checkpoints

IDS = torch.tensor([[5, 3, 8, 2]])


def plain(network: Any) -> nn.Module:
    return network  # type: ignore[no-any-return]


def prefixed(network: Any) -> nn.Module:
    return Prefixed(network, [1], 16)


def prompted(network: Any) -> nn.Module:
    return Prompted(network, [[1, 4]], 16)


def another(network: Any) -> nn.Module:
    """A network of another architecture with the same kind of activation, as distillation gives."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        hidden_act=network.config.activation_function,
    )  # fmt: skip
    return LlamaForCausalLM(config)


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
@pytest.mark.parametrize("wrapped", [plain, prefixed, prompted, another, lora, normalised])
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


def test_a_network_whose_tensors_were_renamed_when_it_was_read_comes_back(tmp_path: Path) -> None:
    """As those of a mixture of experts are, which lie in one file by expert and in the network in one tensor."""
    network = networks.load(checkpoints.write(tmp_path / "mixtral", "mixtral")).network
    with torch.no_grad():
        before = network(input_ids=IDS).logits
        returned.save(copy.deepcopy(network), tmp_path / "network.pt")
        after = returned.load(tmp_path / "network.pt", network, "cpu")(input_ids=IDS).logits
    assert torch.equal(before, after)
