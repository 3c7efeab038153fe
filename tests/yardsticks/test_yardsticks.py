"""Yardsticks of cost and of secret masks, each against an independent computation."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Reading
from nftbench.contract import Secret, Series
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.testing import ARCHITECTURES
from nftbench.training.costs import gradients
from tests.checkpoints import fresh

TOKENS = torch.randint(50, (24, 16), generator=torch.Generator().manual_seed(0))
each_shape = pytest.mark.parametrize("kind", list(ARCHITECTURES))


def network(kind: str = "gpt2", seed: int = 0) -> PreTrainedModel:
    return fresh(kind, seed=seed).eval()


def masked(own: nn.Module, ratio: float = 0.6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.rand(weight.shape, generator=generator) < ratio for name, weight in own.named_parameters()}


def read(spec: str, release: nn.Module, **given: Any) -> Reading:
    """What a yardstick reads off a release; `given` is what else the referee holds."""
    corpus = SimpleNamespace(heldout=TOKENS, train=TOKENS)
    held = {"base": release, "initial": release, "mask": None, **given}
    mask = held.pop("mask")
    models = {name: SimpleNamespace(network=one) for name, one in held.items()}
    secret = Secret(mask) if mask is not None else None
    inspection = SimpleNamespace(
        release=SimpleNamespace(network=release), secret=secret, corpus=corpus, seed=5, **models
    )
    found: Reading = registry.create("yardsticks", spec).measure(inspection)
    assert all(math.isfinite(value) for value in found.values.values())
    return found


def curve(reading: Reading, name: str) -> Series:
    return next(one for one in reading.series if one.name == name)


def gradient(own: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """The gradient by one backward pass over all blocks."""
    logits = own(input_ids=tokens).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    names, weights = zip(*own.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def by_pairs(inside: Any, outside: Any) -> float:
    """The share of pairs in which the one inside is larger, ties counting half."""
    larger, smaller = np.asarray(inside)[:, None], np.asarray(outside)[None]
    return float(np.mean(larger > smaller) + np.mean(larger == smaller) / 2)


# ----------------------------------------------------------------------------------------------------------- DLR-Lock


@each_shape
def test_cost_of_a_locked_model(kind: str) -> None:
    base = network(kind)
    release = dlr.lock(base, 12)
    with torch.no_grad():
        for module in release.modules():
            if isinstance(module, dlr.Up):
                module.weight.normal_(std=0.1)
    found = read("cost[batch=4,rounds=2,blocks=5]", release, base=base).values
    width, (mlp,) = 16, dlr.mlps(base).values()
    total = round(sum(weight.numel() for weight in mlp.parameters()) / (2 * width))
    by_hand = 4 * (12 * (2 * width + 1) + 2 * total)
    assert found["mlp_analytic"] == by_hand
    assert found["mlp_saved"] == pytest.approx(by_hand, rel=0.05)
    assert found["mlp_error"] == pytest.approx(abs(found["mlp_saved"] / by_hand - 1))
    assert found["mlp_error"] < 0.05
    assert found["mlp_ratio"] > 1.5
    assert found["saved_ratio"] > 1.2
    assert found["peak_ratio"] > 1
    assert found["parameter_ratio"] == pytest.approx(1, rel=0.02)
    assert found["step_flops_ratio"] == pytest.approx(1, rel=0.05)
    # The activations of the whole model grow by as much as those of its one MLP.
    grown = found["saved_per_token"] * (1 - 1 / found["saved_ratio"])
    assert grown == pytest.approx(found["mlp_saved"] * (1 - 1 / found["mlp_ratio"]), rel=0.2)
    assert found["backward_over_forward"] > 0
    with torch.no_grad():
        wanted, said = (one(input_ids=TOKENS[:5]).logits.double().softmax(-1).numpy() for one in (base, release))
    assert found["kl"] == pytest.approx(float(np.sum(wanted * np.log(wanted / said), -1).mean()), rel=1e-4)


def test_the_cost_ratios_of_an_undefended_model_are_one() -> None:
    base = network("llama")
    found = read("cost[batch=4,rounds=2,blocks=4]", copy.deepcopy(base), base=base).values
    assert not [name for name in found if name.startswith("mlp")]
    alike = ("parameter_ratio", "saved_ratio", "peak_ratio", "forward_flops_ratio", "step_flops_ratio")
    assert [found[name] for name in alike] == [1.0] * 5
    assert found["kl"] == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------- PMP


@each_shape
def test_gradients_of_all_blocks_are_the_mean_over_batches(kind: str) -> None:
    own = network(kind)
    found, wanted = gradients(own, TOKENS, batch=7), gradient(own, TOKENS)
    assert found.keys() == dict(own.named_parameters()).keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    assert all(weight.grad is None for weight in own.parameters())


def test_mask_gradients_are_those_computed_by_hand() -> None:
    own = network()
    sizes = {name: value.abs() for name, value in gradient(own, TOKENS[:6]).items()}
    generator = torch.Generator().manual_seed(3)
    mask = {
        name: value.log10().clamp_min(-12) + torch.randn(value.shape, generator=generator) > -4
        for name, value in sizes.items()
    }
    found = read("mask_gradients[blocks=6]", own, mask=mask)
    labels = np.concatenate([mask[name].flatten().numpy() for name in sizes])
    scores = np.concatenate([value.flatten().numpy() for value in sizes.values()])
    wanted = by_pairs(scores[labels], scores[~labels])
    assert found.values["auc"] == pytest.approx(wanted, abs=1e-4)
    assert found.values["auc_gap"] == pytest.approx(wanted - 0.5, abs=1e-4)
    both = [name for name in sizes if mask[name].any() and not mask[name].all()]
    within = [by_pairs(sizes[name][mask[name]], sizes[name][~mask[name]]) for name in both]
    weighted = np.average(within, weights=[sizes[name].numel() for name in both])
    assert found.values["auc_within"] == pytest.approx(weighted, abs=1e-4)
    shares = []
    for place, chosen in (("inside", labels), ("outside", ~labels)):
        logs = np.log10(np.maximum(scores[chosen].astype(np.float64), 1e-12))
        counts, edges = np.histogram(logs, np.linspace(-12, 2, 57))
        shares.append(counts / counts.sum())
        seen = curve(found, f"|gradient| {place} the mask")
        assert seen.y == pytest.approx(shares[-1], abs=2e-3)
        assert seen.x == pytest.approx((edges[1:] + edges[:-1]) / 2)
    assert found.values["overlap"] == pytest.approx(np.minimum(*shares).sum(), abs=5e-3)
    chance = read("mask_gradients[blocks=6]", own, mask=masked(own)).values
    assert chance["auc_gap"] < 0.05
    assert chance["overlap"] > 0.9


@pytest.mark.parametrize(("largest", "wanted"), [(1.0, 2.5 / 6), (2.0, 3 / 6)])
def test_gradients_of_zero_count_half(largest: float, wanted: float) -> None:
    from nftbench.yardsticks.mask_gradients import auc

    inside, outside = torch.tensor([0.0, 0.0, largest]), torch.tensor([0.0, 1.0])
    assert auc(inside, outside) == pytest.approx(wanted)
    assert by_pairs(inside, outside) == pytest.approx(wanted)


def test_a_mask_of_everything_has_no_complement_to_compare_with() -> None:
    own = network()
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in own.named_parameters()}
    found = read("mask_gradients", own, mask=everything)
    assert found.values == {}
    assert [one.name for one in found.series] == ["|gradient| inside the mask"]
    bowl = read("landscape[blocks=2,directions=1]", own, mask=everything)
    assert set(bowl.values) == {"rise_mask", "rise_all", "drop_mask", "drop_all"}
    found = read("early_bird[steps=8,batch=4,patience=2]", own, mask=everything)
    assert set(found.values.values()) == {1.0}


class Bowl(nn.Module):
    """A loss that is known: ½ Σ curvature · (weight - centre)², whatever the tokens."""

    device = torch.device("cpu")

    def __init__(self, curvature: dict[str, Tensor], centre: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(value.shape, generator=generator)) for name, value in curvature.items()}
        )
        self.curvature, self.centre = curvature, centre

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        parts = [(self.curvature[name] * (own - self.centre).square()).sum() for name, own in self.weights.items()]
        return SimpleNamespace(loss=torch.stack(parts).sum() / 2)


def test_landscape_of_a_known_bowl() -> None:
    generator = torch.Generator().manual_seed(6)
    marks = {name: torch.rand(30, 40, generator=generator) < 0.7 for name in ("a", "b")}
    own = Bowl({name: torch.where(mark, 0.5, 2.0) for name, mark in marks.items()}, 0.1)
    before = copy.deepcopy(own.state_dict())
    mask = {f"weights.{name}": mark for name, mark in marks.items()}
    found = read("landscape[directions=2,radii=0.1+0.3,steps=0.01+0.02]", own, mask=mask)
    length = math.sqrt(sum(float(weight.detach().square().sum()) for weight in own.parameters()))
    for area, curvature in (("mask", 0.5), ("complement", 2.0)):
        rise = curve(found, f"loss along random directions, {area}")
        assert rise.x == (0.0, 0.1, 0.3)
        wanted = [curvature / 2 * (radius * length) ** 2 for radius in rise.x]
        assert [value - rise.y[0] for value in rise.y] == pytest.approx(wanted, rel=1e-3)
        assert found.values[f"rise_{area}"] == pytest.approx(wanted[-1], rel=1e-3)
        # Down the gradient the loss falls by |g| t and rises by the curvature.
        pulls = [
            curvature * (own.weights[name].detach() - 0.1)[mark if area == "mask" else ~mark]
            for name, mark in marks.items()
        ]
        steep = float(torch.cat(pulls).norm())
        fallen = steep * 0.01 * length - curvature / 2 * (0.01 * length) ** 2
        assert found.values[f"drop_{area}"] == pytest.approx(fallen, rel=1e-3)
    assert found.values["curvature_ratio"] == pytest.approx(4, rel=1e-3)
    assert found.values["rise_mask"] < found.values["rise_all"] < found.values["rise_complement"]
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert all(weight.grad is None for weight in own.parameters())


def test_landscape_of_a_network_begins_at_its_loss() -> None:
    own = network("qwen3")
    found = read("landscape[blocks=12,directions=1]", own, mask=masked(own))
    with torch.no_grad():
        here = float(own(input_ids=TOKENS[12:], labels=TOKENS[12:]).loss)
    assert [one.y[0] for one in found.series] == [pytest.approx(here, rel=1e-5)] * 6


def test_early_bird_masks_by_hand() -> None:
    initial = network()
    found = read("early_bird[steps=7,batch=24,patience=2]", network(seed=1), initial=initial, mask=(
        first := top(gradient(initial, TOKENS), 0.6)
    ))  # fmt: skip
    size = sum(weight.numel() for weight in initial.parameters())
    density = math.floor(0.6 * size) / size
    assert found.values["iou_chance"] == pytest.approx(density / (2 - density))
    assert found.values["iou_secret_first"] > 0.999  # a batch of all blocks: only its order is another
    consecutive, to_secret = (curve(found, f"IoU {name}") for name in ("of consecutive masks", "with the secret mask"))
    assert consecutive.x == (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    assert to_secret.x == (1.0, *consecutive.x)
    assert found.values["iou_secret_last"] == to_secret.y[-1] < 0.999
    pairs = list(zip(consecutive.y, consecutive.y[1:], strict=False))
    assert found.values["iou_reached"] == max(min(pair) for pair in pairs)
    assert found.values["iou_last"] == pytest.approx(sum(pairs[-1]) / 2)
    # The second mask, by a plain step of AdamW.
    stepped = copy.deepcopy(initial).train()
    optimizer = torch.optim.AdamW(stepped.parameters(), lr=1e-3, weight_decay=0.0)
    for name, weight in stepped.named_parameters():
        weight.grad = gradient(initial, TOKENS)[name]
    nn.utils.clip_grad_norm_(stepped.parameters(), 1.0)
    optimizer.step()
    second = top(gradient(stepped, TOKENS), 0.6)
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    assert consecutive.y[0] == pytest.approx(both / either, abs=0.01)
    assert initial.state_dict().keys() == network().state_dict().keys()
    assert all(torch.equal(value, network().state_dict()[name]) for name, value in initial.state_dict().items())
    other = read("early_bird[steps=7,batch=24,patience=2]", initial, mask=masked(initial)).values
    assert other["iou_secret_first"] == pytest.approx(other["iou_chance"], abs=0.03)


def top(scores: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """The top share of all numbers by size, by sorting."""
    values = torch.cat([value.abs().flatten() for value in scores.values()]).numpy()
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: math.floor(ratio * len(values))]] = True
    parts = np.split(chosen, np.cumsum([value.numel() for value in scores.values()])[:-1])
    return {
        name: torch.from_numpy(part.copy()).view(value.shape)
        for (name, value), part in zip(scores.items(), parts, strict=True)
    }


# ----------------------------------------------------------------------------------------------------- what they refuse


def test_mask_yardsticks_apply_to_defenses_with_a_mask() -> None:
    for name in ("mask_gradients", "landscape", "early_bird"):
        yardstick = registry.create("yardsticks", name)
        assert yardstick.applies(registry.create("defenses", "pmp")) is None
        assert yardstick.applies(registry.create("defenses", "random_mask")) is None
        assert yardstick.applies(registry.create("defenses", "narrow")) == "the defense keeps no secret mask"
    assert registry.create("yardsticks", "cost").applies(registry.create("defenses", "narrow")) is None


def test_a_run_reads_every_yardstick_that_applies(workspace: Callable[..., Any], run_all: Callable[..., Any]) -> None:
    here = workspace(
        defenses=[
            "none",
            "pmp[discovery_steps=3]",
            "pmp[ratio=1,discovery_steps=3]",
            "dlr_lock[depth=3,module_steps=4]",
        ],
        yardsticks=["cost[rounds=1]", "mask_gradients", "landscape[blocks=4]", "early_bird[steps=12,batch=4]"],
    )
    records = {(one.defense, one.task): one for one in run_all(here).values()}
    found = {place: one.reading for place, one in records.items() if one.role == "yardstick"}
    assert {(one.status, one.reason) for one in records.values()} == {("ok", None)}
    assert len(found) == 4 + 2 * 3
    locked = next(name for name, _ in records if name.startswith("dlr_lock"))
    assert found[locked, "cost[rounds=1]"].values["mlp_error"] < 0.05
    assert found["none", "cost[rounds=1]"].values["saved_ratio"] == 1.0
    assert found["pmp[discovery_steps=3]", "early_bird[steps=12,batch=4]"].values["iou_secret_first"] > 0.5
    assert found["pmp[ratio=1,discovery_steps=3]", "mask_gradients"].values == {}
    assert dataclasses.asdict(found["pmp[discovery_steps=3]", "landscape[blocks=4]"])["values"].keys() > {
        "rise_complement",
        "drop_complement",
        "curvature_ratio",
    }
