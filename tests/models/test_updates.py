"""Updates: weights read from an adapter are those of PEFT, survive saving and loading, and bad files are refused."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.contract import Update
from nftbench.errors import NftbenchError
from nftbench.models import updates
from nftbench.testing import ARCHITECTURES
from tests.checkpoints import fresh

TOKENS = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(0))
each_shape = pytest.mark.parametrize("kind", list(ARCHITECTURES))


def base(kind: str = "gpt2", **changes: Any) -> PreTrainedModel:
    return fresh(kind, **changes).eval()


def adapter(network: PreTrainedModel, **changes: Any) -> Any:
    """The network with an adapter whose factors are random."""
    targets = [name for name, module in network.named_modules() if "attn" in name and hasattr(module, "weight")]
    targets = [name for name in targets if not name.endswith("norm")]
    turned = network.config.model_type == "gpt2"
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, "fan_in_fan_out": turned, **changes})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(copy.deepcopy(network), config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return wrapped


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(input_ids=TOKENS).logits
    return found


@each_shape
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_dense_weights_are_what_peft_merges(kind: str, changes: dict[str, Any]) -> None:
    network = base(kind)
    wrapped = adapter(network, **changes)
    said = logits(wrapped)
    update = updates.of_adapter(wrapped)
    merged = wrapped.merge_and_unload()
    wanted = updates.difference(merged, network)
    found = updates.dense(update)
    assert found.keys() == wanted.weights.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted.weights[name], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logits(updates.added(network, found)), said, atol=1e-5, rtol=1e-5)


@each_shape
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT calls what transformers renames
def test_peft_loads_the_folder_by_itself(kind: str, tmp_path: Path) -> None:
    network = base(kind)
    network.config._name_or_path = network.name_or_path = "/home/owner/cache/bases/secret"
    wrapped = adapter(network)
    updates.save(updates.of_adapter(wrapped), tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path)).eval()
    torch.testing.assert_close(logits(again), logits(wrapped))
    assert "secret" not in (tmp_path / updates.CONFIG).read_text()
    loaded = updates.load(tmp_path)
    assert loaded is not None
    assert loaded.config == json.loads((tmp_path / updates.CONFIG).read_text())
    torch.testing.assert_close(logits(updates.added(network, updates.dense(loaded))), logits(wrapped))


def test_a_full_update_goes_to_disk_and_back(tmp_path: Path) -> None:
    network = base()
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_input_embeddings().weight[3] += 0.5  # tied: of the head as well
        changed.transformer.h[0].attn.c_attn.bias -= 1.0
    update = updates.difference(changed, network)
    assert set(update.weights) == {"transformer.wte.weight", "transformer.h.0.attn.c_attn.bias"}
    updates.save(update, tmp_path)
    assert not (tmp_path / updates.CONFIG).exists()
    loaded = updates.load(tmp_path)
    assert loaded is not None
    assert loaded.config is None
    assert all(torch.equal(tensor, update.weights[name]) for name, tensor in loaded.weights.items())
    weights = updates.dense(loaded)
    torch.testing.assert_close(logits(updates.added(network, weights)), logits(changed), atol=1e-5, rtol=1e-5)
    assert updates.load(tmp_path / "nowhere") is None


def test_added_scales_and_leaves_the_base_alone() -> None:
    network = base()
    before = copy.deepcopy(network.state_dict())
    name = "transformer.h.0.mlp.c_fc.weight"
    weights = {name: torch.ones_like(before[name])}
    found = updates.added(network, weights, -0.5).state_dict()
    torch.testing.assert_close(found[name], before[name] - 0.5)
    assert all(torch.equal(tensor, before[other]) for other, tensor in found.items() if other != name)
    assert all(torch.equal(tensor, before[other]) for other, tensor in network.state_dict().items())


def test_updates_of_another_model_are_refused() -> None:
    network = base()
    with pytest.raises(
        NftbenchError, match=r"does not fit the base: transformer\.wte\.weight is missing there or has anot"
    ):
        updates.difference(base(vocab_size=51), network)
    with pytest.raises(NftbenchError, match="does not fit the base: elsewhere"):
        updates.added(network, {"elsewhere": torch.ones(2)})
    with pytest.raises(NftbenchError, match="or has another shape"):
        updates.added(network, {"transformer.ln_f.weight": torch.ones(2)})


@pytest.mark.parametrize(
    "changes",
    [{"peft_type": "LOHA"}, {"use_dora": True}, {"rank_pattern": {"c_attn": 2}}, {"alpha_pattern": {"c_attn": 2}}],
)
def test_an_adapter_that_is_no_plain_lora_is_refused(changes: dict[str, Any]) -> None:
    update = updates.of_adapter(adapter(base()))
    assert update.config is not None
    with pytest.raises(NftbenchError, match="not describe plain LoRA"):
        updates.dense(replace(update, config={**update.config, **changes}))


def test_tensors_that_are_no_factors_are_refused() -> None:
    update = updates.of_adapter(adapter(base()))
    first = next(iter(update.weights))
    lone = {name: tensor for name, tensor in update.weights.items() if name != first}
    for weights in (lone, {**update.weights, "base_model.model.lm_head.weight": torch.ones(2)}):
        with pytest.raises(NftbenchError, match="not pairs of lora_A and lora_B"):
            updates.dense(Update(weights, update.config))
