"""Promises of single defenses; the promises of all are in tests/contract/test_contracts.py."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.contract import Model, Protected
from nftbench.defenses import pmp
from nftbench.errors import NftbenchError
from nftbench.methods import masks
from nftbench.models.networks import derive
from nftbench.planning import registry
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import Workspace
from nftbench.testing import ARCHITECTURES
from nftbench.training import engine

MakeWorkspace = Callable[..., Workspace]


def protect(workspace: MakeWorkspace, spec: str, **changes: Any) -> tuple[Protected, Owner]:
    owner = Owner(workspace(**changes), 0)
    plugin = registry.create("defenses", spec)
    model = owner.build() if plugin.stage == "pretrain" else make_base(owner._workspace, 0)
    return plugin.protect(model, owner), owner


def weights(model: Model) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.network.named_parameters()}


def share(mask: Any) -> float:
    return sum(int(kept.sum()) for kept in mask.values()) / sum(kept.numel() for kept in mask.values())


# ----------------------------------------------------------------------------------------------------------------- pmp


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("spec", ["random_mask", "pmp[discovery_steps=3]", "pmp[criterion=random]"])
def test_the_frozen_complement_is_bit_for_bit_its_initial_value(
    spec: str, architecture: str, workspace: MakeWorkspace
) -> None:
    changes = {"architecture": architecture} if architecture != "gpt2" else {}
    protected, owner = protect(workspace, spec, **changes)
    initial, released = weights(owner.build()), weights(protected.release)
    assert protected.secret is not None
    mask = protected.secret.mask
    for name, weight in released.items():
        assert torch.equal(weight[~mask[name]], initial[name][~mask[name]]), name
    moved = sum(int((weight != initial[name])[mask[name]].sum()) for name, weight in released.items())
    # Words that never occur get no gradient, and vectors no decay.
    assert moved > 0.9 * sum(int(kept.sum()) for kept in mask.values())
    assert 0.65 < share(mask) < 0.75


@pytest.mark.parametrize(("scope", "counts"), [("global", (0, 12)), ("per_tensor", (4, 8))])
def test_the_mask_is_the_top_share_in_its_scope(scope: masks.Scope, counts: tuple[int, int]) -> None:
    scores = {"one": torch.arange(10.0), "other": torch.arange(20.0, 40.0)}
    found = pmp.Pmp(ratio=0.4, scope=scope).top(scores)
    for name, size, count in zip(scores, (10, 20), counts, strict=True):
        assert found[name].tolist() == [False] * (size - count) + [True] * count


@pytest.mark.parametrize("scope", ["global", "per_tensor"])
def test_ratio_1_keeps_everything_and_is_plain_pretraining(scope: str, workspace: MakeWorkspace) -> None:
    protected, owner = protect(workspace, f"pmp[ratio=1,scope={scope},discovery_steps=2]")
    assert protected.secret is not None
    assert all(bool(kept.all()) for kept in protected.secret.mask.values())
    plain = owner.pretrain(owner.build())
    assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(protected.release).items())


class Told:
    """An owner whose pre-training shows the given gradients, one for each step."""

    seed = 0

    def __init__(self, gradients: list[list[float]]) -> None:
        self.gradients, self.looked, self.changes = gradients, 0, {}

    def pretrain(self, model: Model, *, each_step: Any, **changes: Any) -> None:
        self.changes = changes
        for step, gradient in enumerate(self.gradients[: changes["steps"]], start=1):
            weight = next(model.network.parameters())
            weight.grad = torch.tensor(gradient)
            self.looked = step
            if each_step(model.network, step):
                return


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))


FIRST, SECOND = [4.0, -3.0, 1.0, 0.5], [0.1, 0.2, -5.0, 6.0]


@pytest.mark.parametrize(
    ("told", "looked", "curve"),
    [
        ([FIRST] * 9, 3, (1.0, 1.0)),  # two overlaps in a row
        ([FIRST, FIRST, SECOND, SECOND, SECOND, FIRST], 5, (1.0, 0.0, 1.0, 1.0)),  # patience starts anew
        ([FIRST, SECOND] * 4, 6, (0.0,) * 5),  # never stable: ends with its steps
    ],
)
def test_discovery_stops_by_patience(told: list[list[float]], looked: int, curve: tuple[float, ...]) -> None:
    owner = Told(told)
    plugin = pmp.Pmp(ratio=0.5, patience=2, discovery_steps=6)
    model: Any = Model(Vector(), None)  # type: ignore[arg-type]
    mask, series = plugin.discover(model, owner)  # type: ignore[arg-type]
    assert owner.looked == looked
    assert series.y == curve
    assert series.x == tuple(range(2, looked + 1))
    assert mask["w"].tolist() == [abs(value) >= 2.0 for value in told[looked - 1]]
    assert owner.changes == {
        "steps": 6,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0,
        "betas": (0.9, 0.999),
    }
    assert model.network.w.grad is None, "it looks at a copy"


def test_the_record_holds_the_iou_curve_and_densities(workspace: MakeWorkspace, run_all: Any) -> None:
    spec = "pmp[discovery_steps=4,patience=9]"
    record = run_all(workspace(defenses=["none", spec]))[spec, "none", "toy_topic", 0]
    assert record.protection is not None
    (series,) = record.protection.series
    assert series.x == (2.0, 3.0, 4.0)
    assert all(0 <= value <= 1 for value in series.y)
    densities = record.protection.density
    assert set(densities) > {"transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"}
    assert all(0 <= value <= 1 for value in densities.values())


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_released_variant_takes_the_steps_of_the_authors_code(architecture: str, workspace: MakeWorkspace) -> None:
    """Both stages by a plain loop, bit for bit: all parameters decay, the complement is shrunk after steps 9 and 17."""
    recipe = {"steps": 20, "weight_decay": 0.5, "schedule": "constant", "learning_rate": 1e-2, "warmup": 0}
    changes = {"architecture": architecture} if architecture != "gpt2" else {}
    spec = "pmp[complement=released,ratio=0.4,discovery_steps=3,interval=8,radius=0.05]"
    protected, owner = protect(workspace, spec, pretraining=recipe, **changes)
    assert protected.secret is not None
    mask, released = protected.secret.mask, weights(protected.release)
    order = engine.token_batches(owner.corpus.train, owner.pretraining.batch, derive(0, "pretrain"), "cpu")
    batches = [tokens for _, tokens in zip(range(20), order, strict=False)]

    scout: Any = owner.build().network.train()
    optimizer = torch.optim.AdamW(scout.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for tokens in batches[:3]:
        optimizer.zero_grad()
        scout(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_(scout.parameters(), 1.0)
        optimizer.step()
    sizes = torch.cat([weight.grad.abs().flatten() for weight in scout.parameters()])
    smallest = sizes.sort(descending=True).values[int(0.4 * len(sizes)) - 1]
    for name, weight in scout.named_parameters():
        assert torch.equal(mask[name], weight.grad.abs() >= smallest), name

    network: Any = owner.build().network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.5, fused=True)
    for step, tokens in enumerate(batches, start=1):
        optimizer.zero_grad()
        network(input_ids=tokens, labels=tokens).loss.backward()
        for name, weight in network.named_parameters():
            weight.grad[~mask[name]] = 0
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step in (9, 17):
            with torch.no_grad():
                outside = [weight[~mask[name]] for name, weight in network.named_parameters()]
                norm = math.sqrt(sum(float(values.square().sum()) for values in outside))
                assert (norm > 0.05) == (step == 9), "decay keeps the complement inside its ball"
                for name, weight in network.named_parameters():
                    weight[~mask[name]] *= min(1.0, 0.05 / norm)
    for name, weight in network.named_parameters():
        assert torch.equal(weight.detach(), released[name]), name


def test_the_released_variant_leaves_no_hook(workspace: MakeWorkspace) -> None:
    protected, _ = protect(workspace, "pmp[complement=released,discovery_steps=2]")
    assert not any(weight._backward_hooks for weight in protected.release.network.parameters())


# ------------------------------------------------------------------------------------------------- trivial defenses


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.9])
def test_narrow_is_the_width_that_comes_nearest(keep: float, workspace: MakeWorkspace) -> None:
    changes: dict[str, Any] = {"model": {"n_embd": 32, "n_head": 2}}
    protected, owner = protect(workspace, f"narrow[keep={keep}]", **changes)

    def count(width: int) -> int:
        return sum(weight.numel() for weight in owner.build(n_embd=width).network.parameters())

    wanted, width = keep * count(32), protected.release.network.config.n_embd
    assert width % 2 == 0
    even_heads = range(4, 32, 4)
    assert abs(count(width) - wanted) == min(abs(count(other) - wanted) for other in even_heads)
    assert abs(count(width) / count(32) - keep) < 0.1


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_narrow_works_with_rotary_embeddings(architecture: str, workspace: MakeWorkspace) -> None:
    protected, owner = protect(workspace, "narrow", architecture=architecture)
    assert protected.release.network.config.hidden_size < owner.build().network.config.hidden_size


def test_noise_is_as_large_as_it_says(workspace: MakeWorkspace) -> None:
    protected, owner = protect(workspace, "noise[scale=0.5]")
    base = weights(make_base(owner._workspace, 0))
    for name, weight in weights(protected.release).items():
        if weight.numel() > 200:
            noise = (weight - base[name]).square().mean().sqrt() / base[name].square().mean().sqrt()
            assert float(noise) == pytest.approx(0.5, rel=0.2), name


def test_reinit_resets_its_share_of_the_weights(workspace: MakeWorkspace) -> None:
    protected, owner = protect(workspace, "reinit[fraction=0.3]")
    base, fresh = weights(make_base(owner._workspace, 0)), weights(owner.build())
    back = total = 0
    for name, weight in weights(protected.release).items():
        assert bool(((weight == base[name]) | (weight == fresh[name])).all()), name
        apart = base[name] != fresh[name]
        back += int((weight == fresh[name])[apart].sum())
        total += int(apart.sum())
    assert back / total == pytest.approx(0.3, abs=0.03)


def test_none_is_the_base(workspace: MakeWorkspace) -> None:
    protected, owner = protect(workspace, "none")
    base = weights(make_base(owner._workspace, 0))
    assert all(torch.equal(weight, base[name]) for name, weight in weights(protected.release).items())


def test_a_checkpoint_is_published_as_it_is(workspace: MakeWorkspace, tmp_path: Any) -> None:
    from nftbench.models import networks

    given = Owner(workspace(), 0).build()
    changed = copy.deepcopy(given.network)
    with torch.no_grad():
        changed.get_input_embeddings().weight.mul_(2)
    networks.save(Model(changed, given.tokenizer), tmp_path / "given")
    protected, _ = protect(workspace, f"checkpoint[path={tmp_path / 'given'}]")
    assert all(torch.equal(weight, changed.get_parameter(name)) for name, weight in weights(protected.release).items())


# --------------------------------------------------------------------------------------------------------------- short


@pytest.mark.parametrize(
    ("fraction", "schedule", "steps", "warmup"),
    [
        (0.5, "cosine", 10, 4),  # the recipe's own warm-up
        (0.25, "cosine", 5, 2),  # half of what five steps leave
        (0.5, "wsd", 10, 3),  # half of the seven steps before the decay
    ],
)
def test_short_is_a_run_with_a_schedule_of_its_own(
    fraction: float, schedule: str, steps: int, warmup: int, workspace: MakeWorkspace
) -> None:
    recipe = {"steps": 20, "batch": 8, "warmup": 4, "learning_rate": 3e-3, "schedule": schedule, "decay": 0.3}
    protected, owner = protect(workspace, f"short[fraction={fraction}]", pretraining=recipe)
    own = owner.pretrain(owner.build(), steps=steps, warmup=warmup)
    assert all(torch.equal(weight, weights(own)[name]) for name, weight in weights(protected.release).items())
    cut = weights(make_base(owner._workspace, 0, fraction))  # has not annealed
    assert not all(torch.equal(weight, cut[name]) for name, weight in weights(protected.release).items())


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_a_share_of_the_steps_lies_between_none_and_all(fraction: float) -> None:
    with pytest.raises(NftbenchError, match="between 0 and 1"):
        registry.create("defenses", f"short[fraction={fraction}]")
