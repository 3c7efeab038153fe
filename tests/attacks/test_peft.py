"""LoRA, DoRA and BitFit: their formulas against weights merged by hand; no other weight moves."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench.contract import Model, Prepared, TaskContext
from nftbench.errors import NftbenchError
from nftbench.methods import adapters
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.models.networks import build, seeded
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.testing import ARCHITECTURES, FirstWord, tiny_suite
from nftbench.training.engine import Stepper
from tests import checkpoints
from tests.checkpoints import fresh
from tests.watched import Watched

KINDS = (*ARCHITECTURES, "dlr-gpt2", "dlr-llama", "dlr-qwen3")


def network_of(kind: str) -> PreTrainedModel:
    """A tiny network, with DLR-Nets instead of MLPs for the kinds `dlr-…`; no weight is zero."""
    base = kind.removeprefix("dlr-")
    locked = {"dlr_depth": 2} if base != kind else {}
    network = build({"model_type": kind, **ARCHITECTURES[base], "vocab_size": 50, **locked}, None, 0, "cpu").network
    with seeded(2), torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return network


def linear() -> PreTrainedModel:
    """No decoder: a linear extractor with a head."""
    return build({"model_type": "linear", "input_dim": 4}, None, 0, "cpu").network


def logits(network: nn.Module) -> Tensor:
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = network(input_ids=ids).logits
    return found


def after_steps(network: PreTrainedModel, adapter: Any) -> tuple[dict[str, Tensor], nn.Module]:
    """The adapted network's weights before three steps on the task, and the network after them."""
    task = FirstWord().load(Given(Model(network)))  # type: ignore[arg-type]
    with seeded(1):
        adapted = adapter(copy.deepcopy(network), 1)
    before = {name: weight.detach().clone() for name, weight in adapted.named_parameters()}
    stepper = Stepper(adapted, "adamw", 1e-2, factor=lambda step: 1.0, weight_decay=0.0, clip=1.0)
    for _ in range(3):
        stepper.step(task.loss(adapted, task.split("train").batch(range(8))))
    return before, adapted


def moved_by(spec: str, network: PreTrainedModel) -> tuple[set[str], float]:
    """The parameters that some steps of the attack move, and by how much it raises the suite's learning rates."""
    context = Watched(seed=0, budget=tiny_suite().budget)
    task = FirstWord().load(Given(Model(network)))  # type: ignore[arg-type]
    registry.create("attacks", spec).adapt(Prepared(Model(network)), task, context)
    (asked,) = context.asked
    before, (_, trained) = network.state_dict(), after_steps(network, asked.options["adapter"])
    after: Any = trained.get_base_model() if hasattr(trained, "get_base_model") else trained  # type: ignore[operator]
    moved = {
        name for name, weight in after.state_dict().items() if name in before and not torch.equal(weight, before[name])
    }
    return moved, asked.options.get("lr_scale", 1.0)


class Given(TaskContext):
    def __init__(self, model: Model) -> None:
        self.given = model

    @property
    def model(self) -> Model:
        return self.given


# ------------------------------------------------------------------------------------------------------ LoRA and DoRA


def merged_by_hand(network: PreTrainedModel, wrapped: Any, alpha: float, rank: int, *, dora: bool) -> PreTrainedModel:
    """Each adapted layer's weight W [out, in] replaced: V = W + B·A·alpha/rank, and for DoRA m V / ||V|| row by row."""
    found = copy.deepcopy(network)
    parts = {name: weight.detach() for name, weight in wrapped.named_parameters() if "lora_" in name}
    layers = {match[1] for name in parts if (match := re.match(r"base_model\.model\.(.+?)\.lora_", name))}
    assert layers == set(adapters.linear_layers(network))
    for layer in layers:
        module = found.get_submodule(layer)
        low, high = (parts[f"base_model.model.{layer}.lora_{one}.default.weight"] for one in "AB")
        stored = module.weight.detach()
        weight = stored.T if isinstance(module, Conv1D) else stored
        weight = weight + high @ low * alpha / rank
        if dora:
            magnitude = parts[f"base_model.model.{layer}.lora_magnitude_vector.default.weight"]
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        with torch.no_grad():
            module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapted_network_is_the_merged_one(kind: str, dora: bool) -> None:
    network = network_of(kind)
    attack = registry.create("attacks", "dora[rank=3,alpha=5]" if dora else "lora[rank=3,alpha=5]")
    with seeded(0):
        wrapped = attack.adapter(copy.deepcopy(network), 0)
    torch.testing.assert_close(logits(wrapped), logits(network), rtol=1e-5, atol=1e-6)
    with seeded(1), torch.no_grad():
        for name, weight in wrapped.named_parameters():
            assert weight.requires_grad == ("lora_" in name)
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    expected = logits(merged_by_hand(network, wrapped, 5.0, 3, dora=dora))
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(network)).abs().max() > 1e-2


@pytest.mark.parametrize("targets", ["all", "attention", "mlp"])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_are_selected_by_attention_or_mlp(kind: str, targets: adapters.Targets) -> None:
    network = network_of(kind)
    names = adapters.linear_layers(network, targets)
    matrices = {name for name, weight in network.named_parameters() if weight.ndim == 2}
    assert {f"{name}.weight" for name in names} <= matrices
    assert not any("head" in name or "wte" in name or "embed" in name for name in names)
    attention = {name for name in names if "attn" in name}
    assert bool(attention) == (targets != "mlp")
    assert (set(names) != attention) == (targets != "attention")
    down = sum(isinstance(network.get_submodule(name), dlr.Down) for name in names)
    assert down == (2 if kind.startswith("dlr") and targets != "attention" else 0)


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(NftbenchError, match=r"no linear layer belongs to attention; there are: extractor$"):
        adapters.linear_layers(linear(), "attention")


@pytest.mark.parametrize("spec", ["lora[rank=2]", "dora[rank=2]"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapters_training_leaves_the_network_as_it_is(kind: str, spec: str) -> None:
    moved, scale = moved_by(spec, network_of(kind))
    assert moved == set()
    assert scale == adapters.LR_SCALE


def test_dora_trains_magnitudes_and_factors() -> None:
    adapter = registry.create("attacks", "dora[rank=2,targets=mlp]").adapter
    start, trained = after_steps(network_of("gpt2"), adapter)
    moved = {name for name, weight in trained.named_parameters() if not torch.equal(weight, start[name])}
    assert moved == {name for name in start if "lora_" in name}
    assert any("magnitude" in name for name in moved)
    assert all(".mlp." in name for name in moved)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dora_leaves_out_layers_with_a_zero_row(kind: str) -> None:
    network = network_of(kind)
    dead, alive = {"gpt2": ("c_proj", "c_fc"), "llama": ("down_proj", "up_proj")}[kind]
    layer = next(module for name, module in network.named_modules() if name.endswith(f"mlp.{dead}"))
    with torch.no_grad():
        (layer.weight if kind == "llama" else layer.weight.T)[3] = 0.0
    adapted = registry.create("attacks", "dora[targets=mlp]").adapter(copy.deepcopy(network), 0)
    torch.testing.assert_close(logits(adapted), logits(network), rtol=1e-5, atol=1e-6)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert not any(f".{dead}." in name for name in trained)
    assert any(f".{alive}." in name for name in trained)


# -------------------------------------------------------------------------------------------------------------- BitFit


@pytest.mark.parametrize("kind", KINDS)
def test_bitfit_trains_the_biases_or_where_there_are_none_the_gains(kind: str) -> None:
    network = network_of(kind)
    vectors = {name for name, weight in network.named_parameters() if weight.ndim == 1}
    biases = {name for name in vectors if name.endswith(".bias")}
    assert bool(biases) == kind.endswith("gpt2")
    moved, scale = moved_by("bitfit", network)
    assert moved == (biases or vectors)
    assert scale == 10
    if not biases:
        assert all("norm" in name for name in moved)


def test_bitfit_leaves_out_biases_that_only_choose_experts(tmp_path: Path) -> None:
    """An attacker's DeepSeek-V3 has them among its parameters; without other biases the gains are trained."""
    network = networks.load(checkpoints.write(tmp_path, "deepseek_v3"), attacker=True).network
    vectors = {name for name, weight in network.named_parameters() if weight.ndim == 1}
    gains = {name for name in vectors if "norm" in name}
    assert vectors - gains == {"model.layers.1.mlp.gate.e_score_correction_bias"}
    moved, _ = moved_by("bitfit", network)
    assert moved == gains


def test_a_network_without_vectors_is_refused() -> None:
    bitfit = registry.create("attacks", "bitfit")
    context = Attacker(seed=0, budget=tiny_suite().budget)
    with pytest.raises(NftbenchError, match="neither biases nor norms"):
        bitfit.adapt(Prepared(Model(linear())), FirstWord().load(Given(Model(network_of("gpt2")))), context)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "jamba", "falcon_h1"])
@pytest.mark.parametrize("attack", ["lora", "dora"])
def test_layers_whose_weights_a_block_reads_itself_are_left_out(attack: str, kind: str) -> None:
    """A Mamba block multiplies by the weights of `dt_proj` and `out_proj` itself, where adapters would do nothing."""
    network = registry.create("attacks", attack).adapter(fresh(kind), 1)
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
    network(input_ids=ids, labels=ids).loss.backward()
    adapted = {name: weight.grad for name, weight in network.named_parameters() if "lora_B" in name}
    assert any("in_proj" in name for name in adapted)
    assert not [name for name, gradient in adapted.items() if gradient is None or not gradient.any()]


@pytest.mark.parametrize(("kind", "router"), [("phimoe", "mlp.router"), ("llama4_text", "feed_forward.router")])
def test_routers_that_return_a_choice_of_experts_are_left_out(kind: str, router: str) -> None:
    """They are linear layers by class. PEFT would add a tensor to the tuple that they return."""
    network = fresh(kind)
    assert any(name.endswith(router) for name in adapters.linear_layers(network))
    adapted = adapters.lora(network, 1, 2.0)
    assert not any(router in name for name, weight in adapted.named_parameters() if weight.requires_grad)
    logits(adapted)


def test_layers_of_a_class_of_their_own_that_return_their_outputs_are_adapted() -> None:
    names = [name for name, _ in adapters.lora(fresh("falcon"), 1, 2.0).named_parameters() if "lora_A" in name]
    assert len(names) == 4
