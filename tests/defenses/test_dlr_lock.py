"""DLR-Lock: the networks that replace the MLPs, their cost and distillation, and loading the release elsewhere."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from nftbench.contract import Model, Series
from nftbench.errors import NftbenchError
from nftbench.methods import overhead
from nftbench.models import architectures, networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import make_corpus
from nftbench.scoring.flags import GRADIENT_ERROR
from nftbench.suites.reading import parse
from nftbench.testing import tiny_suite
from nftbench.training import costs, large_gradients

architectures.register()

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "llama": {**LLAMA, "mlp_bias": True},
    "qwen3": {**LLAMA, "head_dim": 16, "tie_word_embeddings": True},
}
DEPTHS = (1, 2, 5, 8, 13, 32)
TOKENS = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(0))
QUICK = "dlr_lock[depth=3,module_steps=12,joint_steps=8,batch=4]"

each_shape = pytest.mark.parametrize("kind", list(SHAPES))


def base(kind: str, **changes: Any) -> PreTrainedModel:
    settings = {"model_type": kind, **SHAPES[kind], "vocab_size": 50, **changes}
    return networks.build(settings, None, 0, "cpu").network.eval()


def locked(kind: str, depth: int = 4, **changes: Any) -> PreTrainedModel:
    """A locked model with random DLR-Nets; fresh ones output 0."""
    network = dlr.lock(base(kind, **changes), depth)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, dlr.Up):
            nn.init.normal_(module.weight, std=0.1, generator=generator)
    return network


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for module in dlr.mlps(network).values() for parameter in module.parameters())


# -------------------------------------------------------------------------------------------------------- the network


@each_shape
def test_parameter_counts_match_at_every_depth(kind: str) -> None:
    network = base(kind)
    for depth in DEPTHS:
        other = dlr.lock(network, depth)
        nets = dlr.mlps(other).values()
        assert len(nets) == 2
        assert all(isinstance(net, dlr.DlrNet) and len(net.blocks) == depth for net in nets)
        assert size(other) == pytest.approx(size(network), rel=0.02)


@pytest.mark.parametrize("depth", [1, 16, 32])
def test_parameter_counts_match_at_the_size_of_qwen3(depth: int) -> None:
    width, count = 1024, 3 * 1024 * 3072
    found = dlr.ranks(count, width, depth)
    assert 2 * width * sum(found) == pytest.approx(count, rel=0.02)
    assert max(found) - min(found) <= 1
    assert dlr.ranks(count, width, 72, 64) == [64] * 72


def test_depth_and_rank_that_miss_are_refused() -> None:
    with pytest.raises(NftbenchError, match=r"depth 4 and rank 10 miss .* by -69\.0%.* each block gets 32 or 33"):
        dlr.ranks(3 * 32 * 88 - 200, 32, 4, 10)
    with pytest.raises(NftbenchError, match=r"depth must lie in 1…132"):
        dlr.ranks(3 * 32 * 88, 32, 133)


@each_shape
def test_everything_but_the_mlps_is_copied(kind: str) -> None:
    network = base(kind)
    other = dlr.lock(network, 4)
    before, after = network.state_dict(), other.state_dict()
    assert {name for name in before if ".mlp." not in name} == {name for name in after if ".mlp." not in name}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if ".mlp." not in name)
    assert not other.training


@each_shape
def test_a_fresh_net_outputs_zero(kind: str) -> None:
    for net in dlr.mlps(dlr.lock(base(kind), 8)).values():
        hidden = torch.randn(3, 5, 32)
        assert not net(hidden).any()
        assert float(net.get_submodule("blocks.7.norm")(hidden).square().mean()) == pytest.approx(1.0, rel=1e-3)


def by_hand(net: dlr.DlrNet, x: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """The equations of the module's docstring in float64, one token at a time."""

    def phi(u: float) -> float:
        if kind == "gpt2":
            return 0.5 * u * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        return u / (1 + math.exp(-u))

    weights = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        h = x[place]
        for block in range(len(net.blocks)):
            normed = h / math.sqrt(float(np.mean(h**2)) + 1e-6)
            inner = np.array([phi(float(row @ normed)) for row in weights[f"blocks.{block}.down.weight"]])
            h = h + weights[f"blocks.{block}.up.weight"] @ inner
        out[place] = h - x[place]
    return out


@each_shape
def test_forward_is_the_hand_written_one(kind: str) -> None:
    network, other = base(kind, **({"resid_pdrop": 0.0} if kind == "gpt2" else {})), locked(kind)
    nets = list(dlr.mlps(other).values())

    def replaced(net: dlr.DlrNet) -> Callable[..., torch.Tensor]:
        return lambda module, inputs, output: torch.from_numpy(by_hand(net, inputs[0].double().numpy(), kind)).float()

    for mlp, net in zip(dlr.mlps(network).values(), nets, strict=True):
        assert isinstance(net, dlr.DlrNet)
        mlp.register_forward_hook(replaced(net))
    with torch.no_grad():
        torch.testing.assert_close(
            other(input_ids=TOKENS).logits, network(input_ids=TOKENS).logits, atol=1e-5, rtol=1e-5
        )


def test_other_architectures_are_refused() -> None:
    opt = {"model_type": "opt", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = networks.build({**opt, "word_embed_proj_dim": 16, "ffn_dim": 32}, None, 0, "cpu").network
    with pytest.raises(
        NftbenchError, match=r"opt has no MLPs .* gpt2, llama, qwen3; .* fc1 \(Linear\), fc2 \(Linear\)"
    ):
        dlr.lock(network, 4)
    with pytest.raises(NftbenchError, match="dlr-llama has no MLPs"):
        dlr.lock(locked("llama"), 4)


# ---------------------------------------------------------------------------------------------------- the way out


@each_shape
def test_reload_is_bit_equal(kind: str, tmp_path: Path) -> None:
    network = locked(kind, depth=5)
    networks.save(Model(network), tmp_path)
    again = networks.load(tmp_path).network
    assert type(again) is type(network)
    assert (again.config.model_type, again.config.dlr_depth) == (f"dlr-{kind}", 5)
    assert network.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        assert torch.equal(network(input_ids=TOKENS).logits, again(input_ids=TOKENS).logits)
        decoder = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
        hidden = again.base_model(input_ids=TOKENS).last_hidden_state
        assert torch.equal(decoder(input_ids=TOKENS).last_hidden_state, hidden)


def test_registering_twice_and_building_from_a_configuration() -> None:
    architectures.register()
    config = AutoConfig.for_model("dlr-gpt2", **SHAPES["gpt2"], vocab_size=50, dlr_depth=6)
    network = AutoModelForCausalLM.from_config(config)
    assert [len(net.blocks) for net in dlr.mlps(network).values()] == [6, 6]
    fresh = networks.untrained(network, 3)
    assert not any(module.weight.any() for module in fresh.modules() if isinstance(module, dlr.Up))


@each_shape
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT calls what transformers renames
def test_peft_adds_lora_to_a_locked_network(kind: str) -> None:
    network = locked(kind)
    targets = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and ".mlp." in name]
    assert len(targets) == 2 * 4 * 2
    wrapped = get_peft_model(copy.deepcopy(network), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    wrapped(input_ids=TOKENS, labels=TOKENS).loss.backward()
    moved = [name for name, parameter in wrapped.named_parameters() if parameter.grad is not None]
    assert len(moved) == 2 * len(targets)
    with torch.no_grad():
        assert torch.equal(wrapped(input_ids=TOKENS).logits, network(input_ids=TOKENS).logits)


def test_lm_eval_loads_the_release(tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from nftbench.data.corpus import word_tokenizer

    tokenizer = word_tokenizer([f"w{index}" for index in range(47)])
    network = locked("gpt2")
    networks.save(Model(network, tokenizer), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lm-eval's own
        harness = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=1)
        asked = Instance("loglikelihood", {}, ("w1 w2", " w3"), 0)
        [(found, _)] = harness.loglikelihood([asked], disable_tqdm=True)
    ids = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = network(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]
    assert found == pytest.approx(float(wanted), abs=1e-5)


@each_shape
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # the name that every version knows
def test_gradient_checkpointing_gives_the_same_gradients_for_less_memory(kind: str) -> None:
    plain = locked(
        kind, depth=16, **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {})
    )
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable()
    saved = []
    for network in (plain.train(), saving.train()):
        loss, count = overhead.saved_bytes(
            network, lambda own: own(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        )
        loss.backward()
        saved.append(count)
    assert saved[1] < saved[0] / 4
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("check", [costs, large_gradients], ids=["small", "large"])
def test_the_padding_row_which_pytorch_never_trains_is_no_false_gradient(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama's embedding of the padding token is zero, and may be the token that begins a document. Two norms in a row
    divide a small change of it by the root of their epsilon each, so the loss depends on it much more than on the rest.
    """
    network = locked("llama", pad_token_id=0)
    tokens = torch.cat([torch.zeros(4, 1, dtype=torch.long), TOKENS], 1)

    def loss(own: nn.Module) -> torch.Tensor:
        logits = own(input_ids=tokens).logits[:, :-1].double()
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    assert not network.get_input_embeddings().weight[0].any()
    assert check.gradient_error(network, loss, 0) < GRADIENT_ERROR
    monkeypatch.setattr(check, "padding_rows", lambda _: {})
    assert check.gradient_error(network, loss, 0) > GRADIENT_ERROR


# ------------------------------------------------------------------------------------------------------- what it costs


@each_shape
def test_counted_memory_is_the_analytic_one_at_every_depth(kind: str) -> None:
    network = base(kind, num_hidden_layers=1)
    for depth in range(1, 33):
        net = next(iter(dlr.mlps(dlr.lock(network, depth)).values())).train()
        assert isinstance(net, dlr.DlrNet)
        net.dropout.p = 0.0
        total = sum(module.out_features for module in net.modules() if isinstance(module, dlr.Down))
        counted = overhead.saved_per_token(net, torch.randn(3, 7, 32))
        assert counted == pytest.approx(4 * dlr.saved_numbers(depth, 32, total), rel=0.05), depth


def test_overhead_of_a_release() -> None:
    network, deep = base("qwen3"), locked("qwen3", depth=16)
    plain, lock = overhead.footprint(network, TOKENS), overhead.footprint(deep, TOKENS)
    assert lock.parameters == pytest.approx(plain.parameters, rel=0.02)
    assert lock.forward_flops_per_token == pytest.approx(plain.forward_flops_per_token, rel=0.02)
    assert lock.step_flops_per_token == pytest.approx(plain.step_flops_per_token, rel=0.02)
    assert lock.saved_bytes_per_token > 1.5 * plain.saved_bytes_per_token
    assert lock.peak_memory_bytes > plain.peak_memory_bytes
    assert all(parameter.grad is None for parameter in deep.parameters())
    assert overhead.divergence(network, network, TOKENS, batch=3) == pytest.approx(0.0, abs=1e-6)
    assert overhead.divergence(deep, network, TOKENS, batch=3) > 1e-3


def test_times_alternate_and_are_positive() -> None:
    found = overhead.times([base("llama"), locked("llama", depth=16)], TOKENS, rounds=3)
    assert all(one.forward > 0 and one.backward > 0 and one.ratio > 0 for one in found)
    assert found[1].backward > found[0].backward


def test_kl_of_two_distributions() -> None:
    reference, logits = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(overhead.kl(logits, reference)) == pytest.approx(wanted, rel=1e-6)


# --------------------------------------------------------------------------------------------------------- the defense


def curve(series: tuple[Series, ...], name: str) -> Series:
    return next(one for one in series if one.name == name)


def test_distillation_error_falls(workspace: Callable[..., Any]) -> None:
    here = workspace()
    protect = registry.create("defenses", "dlr_lock[depth=4,module_steps=80,joint_steps=40,batch=8]").protect
    teacher = make_base(here, 0)
    before = copy.deepcopy(teacher.network.state_dict())
    first, again = (protect(make_base(here, 0), Owner(here, 0)) for _ in range(2))
    kl = curve(first.series, "KL to the teacher")
    assert kl.x[0] == 0
    assert kl.x[-1] == 120
    assert kl.y[-1] < 0.1 * kl.y[0]
    for inputs in ("teacher", "own"):
        errors = curve(first.series, f"relative error on {inputs} inputs, layer 0")
        assert errors.x == kl.x
        assert errors.y[0] == pytest.approx(1.0)
        assert errors.y[-1] < 0.2
        assert curve(first.series, f"relative error on {inputs} inputs, at the end").y == errors.y[-1:]
    heldout = make_corpus(here, 0).heldout[:8]
    assert overhead.divergence(first.release.network, teacher.network, heldout) == pytest.approx(kl.y[-1], rel=1e-4)
    assert first.series == again.series
    states = (first.release.network.state_dict(), again.release.network.state_dict())
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in before.items() if ".mlp." not in name)
    assert all(parameter.requires_grad for parameter in first.release.network.parameters())


def test_control_is_the_same_distillation_at_depth_one() -> None:
    def control(spec: str) -> str | None:
        found: str | None = registry.create("defenses", spec).control_row()
        return found

    assert control("dlr_lock") == "dlr_lock[depth=1]"
    assert control("dlr_lock[depth=4,rank=33,joint_steps=7]") == "dlr_lock[depth=1,joint_steps=7]"
    assert control("dlr_lock[depth=1]") is None


def test_suites_that_cannot_work_are_refused_before_anything_runs() -> None:
    suite = tiny_suite("llama")
    registry.create("defenses", "dlr_lock").check(suite)
    with pytest.raises(NftbenchError, match=r"depth must lie in 1…48"):
        registry.create("defenses", "dlr_lock[depth=99]").check(suite)
    with pytest.raises(NftbenchError, match="depth 8 and rank 9 miss"):
        registry.create("defenses", "dlr_lock[rank=9]").check(suite)
    gptj = {"model_type": "gptj", "n_layer": 1, "n_embd": 16, "n_head": 2, "rotary_dim": 4, "n_positions": 32}
    with pytest.raises(NftbenchError, match=r"gptj has no MLPs .* mlp \(GPTJMLP\)"):
        registry.create("defenses", "dlr_lock").check(parse({**suite.model_dump(), "model": gptj}))


def test_a_run_records_the_control_and_the_distillation(
    workspace: Callable[..., Any], run_all: Callable[..., Any]
) -> None:
    here = workspace(
        defenses=["none", QUICK], attacks=["none", "full", "lora[targets=mlp]"], utility=["bits_per_token"]
    )
    records = run_all(here)
    assert len(records) == 2 * (2 + 2)
    assert {(one.status, one.reason) for one in records.values()} == {("ok", None)}
    spec = next(str(cell.defense) for cell in here.plan.cells if cell.defense.name == "dlr_lock")
    record = records[spec, "none", "toy_topic", 0]
    assert record.row.control == spec.replace("depth=3", "depth=1")
    assert record.protection.config_changed["dlr_depth"] == 3
    assert record.protection.gradient_error < 1e-4
    assert {"KL to the teacher", "relative error on own inputs, at the end"} <= {
        series.name for series in record.protection.series
    }
