"""Loading a checkpoint: refused where a tensor is missing or pickled; extra tensors are found in every architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.errors import NftbenchError
from nftbench.methods import estimators
from nftbench.models import networks
from nftbench.running.releases import _check_published
from tests import checkpoints

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


def refusal(folder: Path, device: str) -> str:
    with pytest.raises(NftbenchError) as caught:
        networks.load(folder, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@DEVICES
def test_tensors_under_other_names_are_named(device: str, tmp_path: Path) -> None:
    """As torch.compile leaves them. Transformers would draw all of them at random."""
    compiled = checkpoints.edit(
        checkpoints.write(tmp_path, "llama"), lambda held: {f"_orig_mod.{name}": one for name, one in held.items()}
    )
    said = refusal(compiled, device)
    assert "the files lack lm_head.weight, model.embed_tokens.weight, " in said
    assert "they hold _orig_mod.lm_head.weight, " in said


@DEVICES
def test_one_missing_tensor_is_named(device: str, tmp_path: Path) -> None:
    def without(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: one for name, one in held.items() if name != "model.norm.weight"}

    said = refusal(checkpoints.edit(checkpoints.write(tmp_path, "llama"), without), device)
    assert said == f"{tmp_path}: the files lack model.norm.weight"


@DEVICES
def test_layers_that_the_configuration_leaves_out_are_named(device: str, tmp_path: Path) -> None:
    """Transformers would leave out the last layers without a word."""

    def deeper(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return held | {name.replace("layers.0", "layers.1"): one.clone() for name, one in held.items()}

    said = refusal(checkpoints.edit(checkpoints.write(tmp_path, "llama"), deeper), device)
    assert "the files hold model.layers.1." in said
    assert said.endswith("to use fewer layers, save the model with them alone")


@DEVICES
@pytest.mark.parametrize("kind", sorted(checkpoints.SHAPES))
def test_whole_checkpoints_are_loaded(kind: str, device: str, tmp_path: Path) -> None:
    """Also where an output head is tied, and where transformers renames tensors or puts several into one."""
    model = networks.load(checkpoints.write(tmp_path, kind), device)
    assert model.network.device.type == device
    assert model.tokenizer is not None


@pytest.mark.parametrize("attacker", [False, True])
def test_a_loaded_model_does_not_name_its_folder(attacker: bool, tmp_path: Path) -> None:
    """Plugins are handed what was loaded, and the owner's secrets may lie in a neighbouring folder."""
    model = networks.load(checkpoints.write(tmp_path, "gpt2"), attacker=attacker)
    assert model.tokenizer is not None
    for part in (model.network, model.network.config, model.tokenizer):
        assert str(tmp_path) not in repr(vars(part))


@pytest.mark.parametrize("kind", sorted(checkpoints.SHAPES))
def test_a_loaded_network_computes_in_float64(kind: str, tmp_path: Path) -> None:
    """Gradients are checked in float64, which transformers' usual code for a mixture of experts lacks."""
    network: nn.Module = networks.load(checkpoints.write(tmp_path, kind)).network.double()
    network(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    assert all(weight.grad is None or weight.grad.dtype == torch.float64 for weight in network.parameters())


@DEVICES
def test_pickled_weights_are_refused(device: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path)
    (tmp_path / checkpoints.WEIGHTS).unlink()
    assert refusal(tmp_path, device) == f"{tmp_path}: has no weights in the safetensors format"
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin could run code when read" in refusal(tmp_path, device)


@pytest.mark.parametrize("kind", sorted(checkpoints.SHAPES))
@pytest.mark.parametrize("name", [None, "kept", "gpt_neox.layers.0.attention.bias", "transformer.h.0.attn.bias"])
def test_an_extra_tensor_is_found(name: str | None, kind: str, tmp_path: Path) -> None:
    """A secret mask may be called as a buffer that transformers ignores, in old files of GPT-2 and GPT-NeoX."""
    checkpoints.write(tmp_path, kind)
    if name is None:
        _check_published(tmp_path, networks.load(tmp_path))
        return
    checkpoints.edit(tmp_path, lambda held: {**held, name: torch.ones(3)})
    with pytest.raises(NftbenchError, match=f"a tensor that its architecture lacks: {name}"):
        _check_published(tmp_path, networks.load(tmp_path))


def test_dropout_that_must_be_a_whole_number_is_turned_off(tmp_path: Path) -> None:
    """MPT's configuration refuses 0.0, and so no attacker could open such a model."""
    folder = checkpoints.write(tmp_path, "mpt", attn_config={"attn_pdrop": 1})
    config = networks.load(folder, attacker=True).network.config
    assert config.attn_config.attn_pdrop == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"attn_implementation": "flash_attention_2"},
    ],
)
def test_whoever_loads_a_model_says_what_it_returns_and_how(setting: dict[str, Any], tmp_path: Path) -> None:
    """With each of these settings every cell failed, or ran with all hidden states in memory."""
    folder = checkpoints.write(tmp_path / "given", "llama")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    model = networks.load(folder, attacker=True)
    networks.save(model, tmp_path / "saved")
    for network in (
        model.network,
        networks.load(tmp_path / "saved").network,
        networks.build_as(folder, 0, "cpu").network,
    ):
        found = network(input_ids=torch.zeros(1, 4, dtype=torch.long))
        assert found.logits.shape[:2] == (1, 4)
        assert found.hidden_states is None


def test_an_untrained_network_has_the_parameters_of_the_one_that_it_is_made_for(tmp_path: Path) -> None:
    """DeepSeek-V3 keeps the biases that choose experts as buffers, and an attacker has them among the parameters."""
    folder = checkpoints.write(tmp_path, "deepseek_v3")
    for attacker in (False, True):
        network = networks.load(folder, attacker=attacker).network
        names = dict(network.named_parameters()).keys()
        assert any(name.endswith("correction_bias") for name in names) == attacker
        fresh = networks.untrained(network, 1)
        assert dict(fresh.named_parameters()).keys() == names
        assert set(estimators.likelihood(network, fresh)) == names
