"""Mask recovery: each estimator finds a mask that leaks through its own channel, and guesses at chance elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor, nn

from nftbench import Defense, Model, Protected, Release, Secret
from nftbench.attacks import mask_recovery
from nftbench.attacks.mask_recovery import ESTIMATORS, MaskRecovery
from nftbench.methods import estimators, masks
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.running import mask_accuracy
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace
from nftbench.testing import ARCHITECTURES, FirstWord, Undefended, task_context

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Any]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]

NAMES = get_args(mask_recovery.Estimator)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in network.named_parameters()}


# -------------------------------------------------------------------------------------------------- planted channels


@dataclass(frozen=True)
class Leaky(Defense):
    """Trains nothing. Half of the weights are in the mask; they differ from the rest in one way or in none."""

    stage: ClassVar[Any] = "pretrain"
    keeps_secret: ClassVar[bool] = True

    through: str = "nothing"
    ratio: float = 0.5

    @torch.no_grad()
    def protect(self, model: Model, context: Any) -> Protected:
        drawn, others = (weights(networks.untrained(model.network, context.seed + more)) for more in (1, 2))
        generator = torch.Generator().manual_seed(context.seed)
        mask = {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in drawn.items()}
        for name, weight in model.network.named_parameters():
            if self.through == "initial":
                weight.copy_(torch.where(mask[name], drawn[name], weight))
            else:
                weight.copy_(drawn[name] * (40.0 if self.through == "magnitude" else 1.0))
                weight.copy_(torch.where(mask[name], weight, others[name]))
        if self.through == "gradient":
            mask = masks.top(gradients(model, context.corpus.train[:256]), 0.5, "per_tensor")
        return Protected(model, Secret(mask))


def gradients(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    """Mean |g| over single blocks."""
    total = {name: torch.zeros_like(weight) for name, weight in weights(model.network).items()}
    for block in tokens.split(4):
        with torch.enable_grad():
            loss = model.network(input_ids=block, labels=block).loss
            found = torch.autograd.grad(loss, list(model.network.parameters()))
        for name, gradient in zip(total, found, strict=True):
            total[name] += gradient.abs()
    return total


def attacked(workspace: Workspace, defense: Leaky, estimator: str, **settings: Any) -> tuple[Mapping[str, float], int]:
    """The scores of the estimator's guess on such a release, and the number of weights."""
    owner = Owner(workspace, 0)
    protected = defense.protect(owner.build(), owner)
    assert protected.secret is not None
    mask = protected.secret.mask
    second = networks.untrained(protected.release.network, 99)
    if defense.through == "sibling":
        with torch.no_grad():
            for name, weight in second.named_parameters():
                weight.copy_(torch.where(mask[name], weight, weights(protected.release.network)[name]))
    context = Attacker(
        seed=5,
        budget=workspace.suite.budget,
        _corpus=owner.corpus,
        _defense=defense,
        _suite=workspace.suite,
        _sibling=Model(second, owner.corpus.tokenizer),
    )
    attack = MaskRecovery(estimator, batches=24, guesses=3, **settings)  # type: ignore[arg-type]
    guess = attack.prepare(Release(protected.release), context).guess
    assert guess is not None
    return mask_accuracy.score(guess, mask), sum(kept.numel() for kept in mask.values())


FOUND_BY = {
    "nothing": (),
    "magnitude": ("magnitude", "likelihood", "posterior", "combination"),
    "initial": ("replay",),
    "sibling": ("difference",),
    "gradient": ("mean_gradient", "combination"),
}
READ_GRADIENTS = ("gradient", "mean_gradient", "fisher", "displacement", "early_bird", "posterior")


@pytest.mark.parametrize("estimator", NAMES)
@pytest.mark.parametrize("channel", FOUND_BY)
def test_a_channel_is_found_by_its_estimator_and_by_no_other(
    channel: str, estimator: str, workspace: MakeWorkspace
) -> None:
    """The band is five standard errors of Mann and Whitney's statistic for a guess that knows nothing."""
    found, count = attacked(workspace(budget={"preparation_steps": 20}), Leaky(channel), estimator)
    auc = found["roc_auc_within" if channel == "gradient" else "roc_auc"]  # planted in each tensor by itself
    band = 5 * math.sqrt(1 / (3 * count))
    if estimator in FOUND_BY[channel]:
        assert auc > 0.95
    elif channel == "gradient" and estimator in READ_GRADIENTS:
        assert auc > 0.5 - band, "the same channel, seen through less or through another network"
    elif channel == "magnitude" and estimator in READ_GRADIENTS:
        assert auc < 0.5 + 2 * band, "norms turn the gradient away from large weights: a trace"
    else:
        assert abs(auc - 0.5) < band


# --------------------------------------------------------------------------------------------- the bound of a support

BOUNDED: dict[str, Any] = {
    "uniform": stats.uniform(-0.05, 0.1),
    "truncated at two sigma": stats.truncnorm(-2, 2, scale=0.025),
    "truncated at one sigma": stats.truncnorm(-1, 1, scale=0.05),
}
UNBOUNDED: dict[str, Any] = {
    "normal": stats.norm(0, 0.02),
    "laplace": stats.laplace(0, 0.02),
    "student": stats.t(4, scale=0.02),
}


def draw(law: Any, count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(law.rvs(count, random_state=seed)).float()


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("trained", [0, 20_000])
def test_a_bound_is_found_with_and_without_trained_weights_beyond(name: str, trained: int) -> None:
    weight = torch.cat([draw(BOUNDED[name], 20_000), draw(stats.norm(0, 0.2), trained, seed=1)])
    assert estimators.bound(weight) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("count", [48, 2_000, 300_000])
def test_no_bound_is_seen_where_there_is_none(name: str, count: int) -> None:
    assert all(estimators.bound(draw(UNBOUNDED[name], count, seed)) is None for seed in range(3))


def test_mixtures_rounding_and_constants_show_no_bound() -> None:
    narrow, wide = draw(stats.norm(0, 0.02), 30_000), draw(stats.norm(0, 0.1), 70_000, seed=1)
    mixed = torch.cat([narrow, wide])
    assert estimators.bound(mixed) is None
    assert estimators.bound((narrow / 0.001).round() * 0.001) is None
    assert estimators.bound(narrow.bfloat16()) is None
    assert estimators.bound(torch.zeros(100)) is None
    assert estimators.bound(torch.ones(1000)) is None


def test_support_marks_weights_beyond_the_bound_and_no_others() -> None:
    """One layer shows its bound, one has none, and one has a bound that is known from the architecture."""
    inside, outside = draw(BOUNDED["uniform"], 20_000), draw(stats.norm(0, 0.2), 20_000, seed=1)
    layers = {
        "shown": torch.cat([inside, outside]),
        "normal": draw(stats.norm(0, 0.02), 40_000),
        "known": torch.cat([outside, outside + 1e-4]),
    }
    begun = {"shown": inside, "normal": inside * 0 + 1, "known": inside}
    network, fresh = (
        nn.ParameterDict({name: nn.Parameter(w) for name, w in given.items()}) for given in (layers, begun)
    )
    found = estimators.support(network, fresh)
    assert set(found) == set(layers)
    for name in ("shown", "known"):
        expected = (layers[name].abs() > 0.05).float()
        assert float((found[name] - expected).abs().mean()) < 0.005
    assert not found["normal"].any()


# --------------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("shrunk", [1.0, 0.05])
def test_likelihood_is_the_posterior_of_the_mixture_that_was_planted(shrunk: float) -> None:
    """Against the true densities, by scipy: two tensors of different spread and share, one factor for both."""
    plans = {"first": (0.02, 0.7, 6.0), "second": (0.01, 0.4, 12.0)}
    layers, truth, begun = {}, {}, {}
    for index, (name, (sigma, share, ratio)) in enumerate(plans.items()):
        count = 40_000
        trained = round(share * count)
        layers[name] = torch.cat(
            [
                draw(stats.norm(0, ratio * sigma), trained, seed=index),
                draw(stats.norm(0, shrunk * sigma), count - trained, seed=10 + index),
            ]
        )
        values = layers[name].double().numpy()
        truth[name] = torch.from_numpy(
            math.log(share / (1 - share))
            + stats.norm(0, ratio * sigma).logpdf(values)
            - stats.norm(0, shrunk * sigma).logpdf(values)
        )
        begun[name] = draw(stats.norm(0, sigma), count, seed=20 + index)
    network, fresh = (
        nn.ParameterDict({name: nn.Parameter(w) for name, w in given.items()}) for given in (layers, begun)
    )
    for name, odds in estimators.likelihood(network, fresh).items():
        close = truth[name].abs() < 5
        assert float((odds - truth[name])[close].abs().max()) < 0.25


@pytest.mark.parametrize(("hinted", "slope"), [("mask", 1.0), ("noise", 0.0)])
def test_a_hint_counts_in_the_likelihood_as_much_as_it_agrees_with_the_weights(hinted: str, slope: float) -> None:
    """Hints of two log-odds, either right as often as that means or unrelated to the mask."""
    count = 40_000
    mask = torch.arange(count) < count // 2
    layer = torch.where(mask, draw(stats.norm(0, 0.1), count), draw(stats.norm(0, 0.02), count, seed=1))
    right = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 1 / (1 + math.exp(-2))
    shown = (mask == right) if hinted == "mask" else torch.arange(count) % 2 == 0
    hint = torch.where(shown, 2.0, -2.0)
    network, fresh = (nn.ParameterDict({"w": nn.Parameter(w)}) for w in (layer, draw(stats.norm(0, 0.02), count, 2)))
    odds, plain = (estimators.likelihood(network, fresh, given)["w"] for given in ({"w": hint}, None))
    gap = float((odds - plain)[shown].mean() - (odds - plain)[~shown].mean())
    assert gap == pytest.approx(4 * slope, abs=0.3)


@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_gains_and_biases_are_marked_where_they_left_their_initial_constant(factor: float) -> None:
    """Outside the mask all are the same multiple of the initial value, bit for bit, even if only one is left."""
    gains = {"one": torch.ones(48), "other": torch.ones(48), "bias": torch.zeros(48)}
    mask = {"one": torch.arange(48) > 0, "other": torch.arange(48) > 5, "bias": torch.arange(48) % 3 > 0}
    layers = {}
    for name, start in gains.items():
        moved = start + draw(stats.norm(0, 0.1), 48, seed=len(name))
        layers[name] = torch.where(mask[name], moved, factor * start)
    network, fresh = (
        nn.ParameterDict({name: nn.Parameter(w) for name, w in given.items()}) for given in (layers, gains)
    )
    assert mask_accuracy.score(estimators.likelihood(network, fresh), mask)["roc_auc"] == 1.0


# --------------------------------------------------------------------------------------------- departure of a relative


@settings(max_examples=20)
@given(decay=st.floats(0.001, 1.0), vectors=st.floats(0.001, 1.0), seed=st.integers(0, 100))
def test_departure_is_zero_for_weights_that_only_decayed(decay: float, vectors: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"large": (40, 50), "small": (5, 6), "vector": (7,), "bias": (7,)}
    before = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    before["bias"].zero_()
    mask = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}
    after = {
        name: torch.where(mask[name], torch.randn(w.shape, generator=generator), w * (decay if w.ndim > 1 else vectors))
        for name, w in before.items()
    }
    network, origin = (
        nn.ParameterDict({name: nn.Parameter(w) for name, w in given.items()}) for given in (after, before)
    )
    found = estimators.departure(network, origin)
    assert all(bool((found[name][~mask[name]] < 1e-6).all()) for name in ("large", "small", "bias"))
    assert float((found["large"][mask["large"]] > 1e-3).float().mean()) > 0.99
    assert bool((found["bias"][mask["bias"]] == 1).all())
    share = float(torch.cat([~mask[name].flatten() for name in ("large", "small", "vector")]).float().mean())
    assert estimators.related(network, origin) == pytest.approx(share, abs=0.01)


def test_independent_networks_are_not_related() -> None:
    drawn = [
        nn.ParameterDict({"w": nn.Parameter(draw(stats.norm(), count, seed))})
        for count, seed in ((5000, 0), (5000, 1), (4999, 1))
    ]
    assert estimators.related(drawn[0], drawn[1]) < mask_recovery.RELATED
    assert estimators.related(drawn[0], drawn[2]) == 0.0, "of another shape"


# --------------------------------------------------------------------------------------------------- gradients by hand


def told(steps: list[dict[str, Tensor]], **fields: Any) -> Any:
    """A context whose training shows these gradients or takes these steps."""

    def train(network: nn.Module, loss: Any, *, steps: int, learning_rate: float, each_step: Any) -> None:
        for step, shown in enumerate(fields["told"], 1):
            for name, weight in network.named_parameters():
                if fields["shows"] == "gradients":
                    weight.grad = shown[name]
                else:
                    weight.data.add_(shown[name])
            each_step(network, step)

    fields |= {"told": steps}
    return SimpleNamespace(
        train=train,
        text=lambda model, batch: iter(()),
        pretraining=SimpleNamespace(batch=4, learning_rate=1e-3),
        budget=SimpleNamespace(preparation_steps=len(steps)),
        untrained=lambda model, seed: copy.deepcopy(model.network),
        defense=SimpleNamespace(ratio=0.5, scope="global"),
    )


def table(seed: int, count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(3, 4, generator=generator) for name in "ab"} for _ in range(count)]


def two() -> Model:
    return Model(nn.ParameterDict({name: nn.Parameter(torch.ones(3, 4)) for name in "ab"}))  # type: ignore[arg-type]


def test_early_bird_counts_how_often_a_weight_is_on_top() -> None:
    steps = table(0, 9)
    context = told(steps, shows="gradients")
    guess = MaskRecovery("early_bird").prepare(Release(two()), context).guess
    assert guess is not None
    for name in "ab":
        for place in range(12):
            times = 0
            for shown in steps:
                sizes = sorted((float(g) for part in shown.values() for g in part.abs().flatten()), reverse=True)
                times += float(shown[name].abs().flatten()[place]) >= sizes[11]
            odds = (times + 0.5) / (9 - times + 0.5)
            assert float(guess[name].flatten()[place]) == pytest.approx(math.log(odds), rel=1e-5)


def test_displacement_is_one_minus_net_over_gross_movement() -> None:
    steps = table(1, 6)
    for moves in steps:
        moves["a"][0] = 0.0  # never moves
        moves["a"][1] = 0.5  # always the same way
    model = two()
    guess = MaskRecovery("displacement").prepare(Release(model), told(steps, shows="steps")).guess
    assert guess is not None
    for name in "ab":
        moved = torch.stack([moves[name] for moves in steps]).double()
        expected = 1 - moved.sum(0).abs() / moved.abs().sum(0)
        expected[moved.abs().sum(0) == 0] = 0
        assert torch.allclose(guess[name].double(), expected, atol=1e-5)
    assert bool((model.network.a == 1).all()), "the release itself stays as it is"


@pytest.mark.parametrize(
    ("estimator", "count", "blocks"), [("gradient", 1, 8), ("mean_gradient", 3, 16), ("fisher", 3, 1)]
)
def test_gradient_statistics_are_those_of_the_text_that_was_read(
    estimator: str, count: int, blocks: int, workspace: MakeWorkspace
) -> None:
    here = workspace()
    owner = Owner(here, 0)
    model = owner.build()
    context = Attacker(seed=5, budget=here.suite.budget, _corpus=owner.corpus, _defense=Leaky(), _suite=here.suite)
    guess = MaskRecovery(estimator, batches=3).prepare(Release(model), context).guess  # type: ignore[arg-type]
    assert guess is not None
    text = context.text(model, blocks)
    total = {name: torch.zeros_like(weight) for name, weight in weights(model.network).items()}
    for _ in range(count):
        tokens = next(text)
        assert tokens.shape == (blocks, here.suite.corpus.block)
        model.network.zero_grad()
        logits = model.network(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        (-logits.gather(-1, tokens[:, 1:, None]).mean()).backward()
        for name, weight in model.network.named_parameters():
            assert weight.grad is not None
            total[name] += (weight.grad.square() if estimator == "fisher" else weight.grad.abs()) / count
    assert all(torch.allclose(guess[name], total[name], rtol=1e-3, atol=1e-9) for name in total)


# --------------------------------------------------------------------------------------------------------- combination


def test_a_combination_beats_its_features_and_is_deterministic() -> None:
    """Two informative features and a useless one, learnt on some draws and tried on another."""

    def drawn(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        mask = {name: torch.rand(40, 50, generator=generator) < 0.6 for name in "ab"}
        noise = {name: torch.randn(40, 50, 3, generator=generator) for name in mask}
        lean = torch.tensor([1.0, 10.0, 0.0])
        return {name: (noise[name] + kept[..., None]) * lean for name, kept in mask.items()}, mask

    features, mask = drawn(1)
    first, second = (estimators.combination([drawn(0), drawn(2)], features) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in mask)
    alone = [mask_accuracy.score({name: f[..., i] for name, f in features.items()}, mask)["roc_auc"] for i in range(2)]
    # Two independent unit normals, each shifted by one: together shifted by the root of two.
    assert mask_accuracy.score(first, mask)["roc_auc"] == pytest.approx(stats.norm.cdf(1.0), abs=0.02)
    assert max(alone) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.02)


@pytest.mark.parametrize("marked", [True, False])
def test_a_shadow_mask_of_all_true_or_all_false_gives_a_constant_guess(marked: bool) -> None:
    features = {"a": torch.randn(4, 5, 3), "b": torch.randn(6, 3)}
    mask = {"a": torch.full((4, 5), marked), "b": torch.full((6,), marked)}
    found = estimators.combination([(features, mask)], features)
    assert {name: score.shape for name, score in found.items()} == {name: kept.shape for name, kept in mask.items()}
    assert not any(score.any() for score in found.values())


# -------------------------------------------------------------------------------------------------------- whole attacks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_estimators_work_on_a_locked_network(architecture: str, workspace: MakeWorkspace) -> None:
    here = workspace(architecture=architecture, budget={"preparation_steps": 2})
    owner = Owner(here, 0)
    locked = Model(dlr.lock(owner.build().network, depth=2), owner.corpus.tokenizer)
    context = Attacker(seed=5, budget=here.suite.budget, _corpus=owner.corpus, _defense=Leaky(), _suite=here.suite)
    for name in ("likelihood", "support", "posterior", "fisher", "displacement"):
        guess = MaskRecovery(name, batches=2).prepare(Release(locked), context).guess  # type: ignore[arg-type]
        assert guess is not None
        assert {key: score.shape for key, score in guess.items()} == {
            key: weight.shape for key, weight in locked.network.named_parameters()
        }
        assert all(bool(torch.isfinite(score).all()) for score in guess.values())


def test_knowledge_is_what_the_estimator_needs() -> None:
    levels = {name: frozenset(MaskRecovery(name).knowledge) for name in ESTIMATORS}
    assert set(levels) == set(NAMES)
    assert {name for name, known in levels.items() if known == {"method"}} == {"magnitude", "likelihood", "support"}
    assert {name for name, known in levels.items() if "sibling" in known} == {"replay", "difference"}
    assert MaskRecovery().knowledge == {"method", "data"}, "the level of the ranking"


def test_it_applies_where_the_defense_keeps_a_secret() -> None:
    class Later(Leaky):
        stage: ClassVar[Any] = "posttrain"

    assert all(MaskRecovery(name).applies(Leaky()) is None for name in ESTIMATORS)
    assert "no secret" in str(MaskRecovery().applies(Undefended()))
    assert MaskRecovery().applies(Later()) is None
    assert "trained base" in str(MaskRecovery("combination").applies(Later())), "no shadow can be run"


def test_only_the_top_share_of_the_guess_is_trained(workspace: MakeWorkspace) -> None:
    """As many weights as the defense's ratio, those with the highest scores; the rest bit for bit as released."""
    here = workspace()
    owner = Owner(here, 0)
    defense = Leaky("magnitude", ratio=0.3)
    release = defense.protect(owner.build(), owner).release
    context = Attacker(seed=5, budget=here.suite.budget, _defense=defense, _suite=here.suite)
    attack = MaskRecovery("magnitude")
    prepared = attack.prepare(Release(release), context)
    task = FirstWord().load(task_context(here, release))
    outcome = attack.adapt(
        prepared,
        AttackersTask(task),
        dataclasses.replace(
            context, budget=here.suite.budget.model_copy(update={"learning_rates": {"adamw": (1e-3, 1e-2)}})
        ),
    )
    before, after = weights(release.network), weights(outcome.network)
    changed = torch.cat([(before[name] != after[name]).flatten() for name in before])
    sizes = torch.cat([weight.abs().flatten() for weight in before.values()])
    assert not bool(changed[sizes < sizes.sort(descending=True).values[math.floor(0.3 * len(sizes)) - 1]].any())
    assert 0.05 < float(changed.float().mean()) <= 0.3


def test_a_run_scores_guesses_except_those_of_an_attack_that_knows_the_secret(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin(
        "told",
        "@dataclass(frozen=True)\nclass Told(Attack):\n"
        "    knowledge: ClassVar = frozenset({'secret'})\n\n"
        "    def prepare(self, release, context):\n"
        "        return Prepared(release.model, {name: kept.float() for name, kept in context.secret.mask.items()})\n\n"
        "    def adapt(self, prepared, task, context):\n"
        "        return context.sweep(prepared.model, task)\n",
    )
    specs = ["mask_recovery[estimator=difference]", "mask_recovery[estimator=magnitude]"]
    records = run_all(workspace(defenses=["none", "pmp[discovery_steps=3]"], attacks=["none", *specs, "told"]))
    found = {
        attack: record for (row, attack, task, _), record in records.items() if row != "none" and task == "toy_topic"
    }
    assert {record.status for record in records.values()} == {"ok"}
    assert found["mask_recovery[estimator=difference]"].recovery["roc_auc"] > 0.99
    assert 0.5 < found["mask_recovery[estimator=magnitude]"].recovery["roc_auc"] < 0.99
    assert found["told"].recovery == {}
    assert found["none"].recovery == {}
    assert found[specs[0]].knowledge == ("method", "sibling")
    assert not [key for key in records if key[0] == "none" and key[1] in specs], "there is nothing to guess"
