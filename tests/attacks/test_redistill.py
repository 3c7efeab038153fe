"""Re-distillation: the result is an ordinary network close to the release, and its cost is that of its steps."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from nftbench.contract import Attack, Model, Release
from nftbench.errors import NftbenchError
from nftbench.methods import adapters, distillation
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.testing import ARCHITECTURES, Undefended, temporary_workspace, tiny_suite
from tests.attacks.planted import BUDGET, WORDS, Reader
from tests.checkpoints import MORE_SHAPES, SHAPES, fresh

redistill = import_module("nftbench.attacks.redistill")
TOKENS = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))

each_architecture = pytest.mark.parametrize("kind", list(ARCHITECTURES))
standard_or_locked = pytest.mark.parametrize("locked", [False, True])


def base(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    return fresh(kind, seed=seed, **changes).eval()


def speaking(network: PreTrainedModel) -> PreTrainedModel:
    """The network with MLPs of large weights: fresh MLPs add almost nothing, fresh DLR-Nets add zero."""
    generator = torch.Generator().manual_seed(1)
    for mlp in dlr.mlps(network).values():
        for weight in mlp.parameters():
            nn.init.normal_(weight, std=0.3, generator=generator)
    return network


def prepared(spec: str, kind: str, locked: bool, steps: int = 40) -> tuple[PreTrainedModel, PreTrainedModel, Attacker]:
    """The release, what the attack makes of it, and the attacker's context."""
    attack: Attack = registry.create("attacks", spec)
    with temporary_workspace(tiny_suite(kind, budget={"preparation_steps": steps})) as workspace:
        owner = Owner(workspace, 0)
        model = owner.build()
        context = Attacker(
            seed=3,
            budget=workspace.suite.budget,
            _corpus=owner.corpus,
            _defense=Undefended(),
            _suite=workspace.suite,
        )
        context.corpus.heldout  # noqa: B018 (read before its folder is gone)
    network = speaking(dlr.lock(model.network, 3) if locked else model.network).eval()
    before = copy.deepcopy(network)
    found = attack.prepare(Release(Model(network, model.tokenizer)), context).model.network
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in network.state_dict().items())
    return network, found, context


@torch.no_grad()
def divergence(network: nn.Module, reference: nn.Module, tokens: Tensor) -> float:
    """Mean KL(reference ‖ network) over positions, in float64."""
    ours, theirs = (one(input_ids=tokens).logits.double().log_softmax(-1) for one in (network, reference))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


# ---------------------------------------------------------------------------------------------------------- what it is


@each_architecture
@standard_or_locked
def test_new_mlps_imitate_the_release_and_the_rest_is_kept(kind: str, locked: bool, cache: Any, tmp_path: Path) -> None:
    release, found, context = prepared("redistill[learning_rate=0.01]", kind, locked)
    assert type(found) is type(base(kind))
    assert found.config.model_type == kind
    inside = tuple(dlr.mlps(found))
    kept = {name: weight for name, weight in found.state_dict().items() if not name.startswith(inside)}
    assert all(torch.equal(weight, release.state_dict()[name]) for name, weight in kept.items())
    assert len(kept) < len(found.state_dict())
    fresh = copy.deepcopy(found)
    for mlp in dlr.mlps(fresh).values():
        for weight in mlp.parameters():
            nn.init.zeros_(weight)
    near, far = (divergence(network, release, context.corpus.heldout) for network in (found, fresh))
    assert near < 0.7 * far
    assert all(weight.requires_grad for weight in found.parameters())
    networks.save(Model(found), tmp_path / "saved")
    loaded = networks.load(tmp_path / "saved").network
    assert torch.equal(loaded(input_ids=TOKENS).logits, found(input_ids=TOKENS).logits)
    wrapped = adapters.lora(found, 2, 4.0)
    assert any(weight.requires_grad for weight in wrapped.parameters())
    assert wrapped(input_ids=TOKENS).logits.shape == (3, 12, found.config.vocab_size)


@each_architecture
def test_a_new_model_imitates_the_release(kind: str, cache: Any) -> None:
    release, found, context = prepared("redistill[what=model,learning_rate=0.01]", kind, True)
    assert type(found) is type(base(kind))
    fresh = networks.untrained(found, context.seed)
    assert all(not torch.equal(weight, fresh.get_parameter(name)) for name, weight in found.named_parameters())
    near, far = (divergence(network, release, context.corpus.heldout) for network in (found, fresh))
    assert near < 0.9 * far


@each_architecture
def test_the_original_architecture_is_read_off_a_locked_one(kind: str) -> None:
    changes = {"gpt2": {"n_inner": 20}, "llama": {"intermediate_size": 20, "mlp_bias": True}}.get(kind, {})
    network = base(kind, tie_word_embeddings=True, **changes)
    found = redistill.ordinary(dlr.lock(network, 2), 7)
    assert found.config.to_dict() == network.config.to_dict()
    fresh = networks.untrained(network, 7).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in found.state_dict().items())


MLPS = {
    "mamba": {"mixer"},
    "mamba2": {"mixer"},
    "falcon_mamba": {"mixer"},
    "falcon_h1": {"feed_forward"},
    "jamba": {"feed_forward"},
    "llama4_text": {"feed_forward"},
    "opt": {"fc1", "fc2"},
    "bloom": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "mpt": {"ffn.up_proj", "ffn.down_proj"},
}
"""What is taken for the MLP of a block, where that is not its part `mlp`."""


@pytest.mark.parametrize("kind", [*SHAPES, *MORE_SHAPES])
def test_the_mlps_of_every_architecture_are_distilled_and_nothing_else_moves(kind: str) -> None:
    release = base(kind)
    assert {name.split(".0.")[1] for name in dlr.mlps(release) if ".0." in name} == MLPS.get(kind, {"mlp"})
    attack = registry.create("attacks", "redistill[steps=6,learning_rate=0.003]")
    context = Reader(seed=3, budget=BUDGET, _defense=Undefended())
    found = attack.prepare(Release(Model(copy.deepcopy(release))), context).model.network
    inside = tuple(f"{name}." for name in dlr.mlps(release))
    kept = {name: weight for name, weight in found.state_dict().items() if not name.startswith(inside)}
    assert all(torch.equal(weight, release.state_dict()[name]) for name, weight in kept.items())
    begun = redistill.ordinary(release, 3)
    redistill.keep_all_but_mlps(begun, release)
    seen = TOKENS % WORDS  # as the attacker's text
    near, far = (float(distillation.module_loss(one, release, seen).detach()) for one in (found, begun))
    assert near < far


@standard_or_locked
@each_architecture
def test_where_the_class_of_the_mlps_is_known_they_are_the_same(kind: str, locked: bool) -> None:
    network = dlr.lock(base(kind), 2) if locked else base(kind)
    known = GPT2MLP | LlamaMLP | Qwen3MLP | dlr.DlrNet
    modules = {name: module for name, module in network.named_modules() if isinstance(module, known)}
    assert list(dlr.mlps(network).items()) == list(modules.items())
    assert len(modules) == network.config.num_hidden_layers


def test_inputs_and_outputs_belong_to_their_mlp_in_whatever_order_a_block_runs_them() -> None:
    network = base("opt")
    parts = network.model.decoder.layers[0]._modules
    parts["fc1"] = parts.pop("fc1")  # now behind fc2
    first, second = dlr.mlps(network).values()
    assert (first, second) == (parts["fc2"], parts["fc1"])
    for mlp, (x, y) in zip((first, second), distillation.traced(network, TOKENS)[0], strict=True):
        torch.testing.assert_close(mlp(x), y)


def test_a_network_without_blocks_is_refused() -> None:
    network = networks.build({"model_type": "linear", "input_dim": 4}, None, 0, "cpu").network
    with pytest.raises(NftbenchError, match="it is not known where linear has its MLPs"):
        redistill.keep_all_but_mlps(copy.deepcopy(network), network)


def test_the_default_learning_rate_is_that_of_pretraining(cache: Any) -> None:
    (_, found, context), (_, same, _) = (
        prepared(f"redistill[steps=3{end}]", "gpt2", False) for end in ("", ",learning_rate=0.003")
    )
    assert context.pretraining.learning_rate == 0.003
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in found.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- the losses


@each_architecture
def test_the_losses_are_their_equations(kind: str) -> None:
    teacher, student = speaking(dlr.lock(base(kind), 2)), speaking(base(kind))
    stacks = [one.base_model.h if kind == "gpt2" else one.base_model.layers for one in (teacher, student)]
    inputs: dict[str, list[Tensor]] = {}
    logits: dict[str, Tensor] = {}
    for side, network, stack in zip(("teacher", "student"), (teacher, student), stacks, strict=True):
        caught: list[Tensor] = []
        for layer in stack:
            layer.mlp.register_forward_pre_hook(lambda _, args, caught=caught: caught.append(args[0]))
        with torch.no_grad():
            logits[side] = network(input_ids=TOKENS).logits.double()
        inputs[side] = [x.clone() for x in caught]

    @torch.no_grad()
    def error(side: str) -> float:
        """Of all layers on one side's inputs."""
        total = 0.0
        for x, *layers in zip(inputs[side], *stacks, strict=True):
            theirs, ours = (layer.mlp(x).double() for layer in layers)
            total += float(((ours - theirs) ** 2).sum() / (theirs**2).sum())
        return total

    theirs, ours = (logits[side].log_softmax(-1) for side in ("teacher", "student"))
    kl = float((theirs.exp() * (theirs - ours)).sum() / TOKENS.numel())
    alone = distillation.module_loss(student, teacher, TOKENS)
    assert float(alone.detach()) == pytest.approx(error("teacher"), rel=1e-5)
    joint = distillation.joint_loss(student, teacher, TOKENS)
    assert float(joint.detach()) == pytest.approx(kl + error("student"), rel=1e-5)
    joint.backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(weight.grad is not None for mlp in dlr.mlps(student).values() for weight in mlp.parameters())


# ------------------------------------------------------------------------------------------------------------ the cost


def flops(loss: Any, student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    tokens = torch.zeros(8, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss(student, teacher, tokens).backward()
    return float(counter.get_total_flops())


@standard_or_locked
def test_the_cost_of_new_mlps_counts_both_phases(locked: bool, cache: Any) -> None:
    release, found, context = prepared("redistill", "gpt2", locked, steps=10)
    student = copy.deepcopy(found).requires_grad_(False)
    for mlp in dlr.mlps(student).values():
        mlp.requires_grad_(True)
    phases = [flops(loss, student, release) for loss in (distillation.module_loss, distillation.joint_loss)]
    assert context.ledger.steps == 10
    assert context.ledger.flops == pytest.approx(7 * phases[0] + 3 * phases[1])


def test_the_cost_of_a_new_model_counts_the_teacher(cache: Any) -> None:
    release, found, context = prepared("redistill[what=model,steps=4]", "gpt2", False)

    def loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(input_ids=tokens)
        value: Tensor = student(input_ids=tokens).logits.sum()
        return value

    assert context.ledger.steps == 4
    assert context.ledger.flops == pytest.approx(4 * flops(loss, found, release))
