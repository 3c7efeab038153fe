"""Training before the sweep, against loops written by hand; what an attacker's context gives; what it costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nftbench.contract import Model, Protected, Release
from nftbench.data.corpus import EOS, Corpus, word_tokenizer
from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning.plan import Job, narrow
from nftbench.records.record import Cell
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner, Shadow
from nftbench.running.releases import load_secret, make_release, make_sibling
from nftbench.running.workspace import Workspace, make_corpus
from nftbench.testing import ARCHITECTURES, FirstWord, task_context
from nftbench.training import preparation
from nftbench.training.engine import Stepper
from nftbench.training.preparation import fitting, tuned
from nftbench.training.trainer import CellTimeoutError, Ledger
from tests.apart import attack_here
from tests.checkpoints import fresh
from tests.leaks import leaks

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Path]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]
Bare = Callable[[Any], Any]

TOKENS = torch.randint(40, (6, 8), generator=torch.Generator().manual_seed(0))


def network(architecture: str = "gpt2") -> Any:
    return fresh(architecture, 40, seed=1)


def text_loss(trained: nn.Module, step: int) -> Tensor:
    """Another pair of blocks at each step."""
    tokens = TOKENS[2 * (step % 3) :][:2]
    value: Tensor = trained(input_ids=tokens, labels=tokens).loss
    return value


def state(trained: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trained.named_parameters()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def job_of(workspace: Workspace, defense: str, attack: str = "none") -> Job:
    return next(job for job in workspace.plan.jobs() if (str(job.defense), str(job.attack)) == (defense, attack))


def attacker(workspace: Workspace, **known: Any) -> Attacker:
    return Attacker(seed=7, budget=workspace.suite.budget, **known)


# --------------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize("steps", [1, 4, 23])
def test_training_is_adamw_with_a_tenth_of_warm_up_and_a_fall_to_zero(steps: int, workspace: MakeWorkspace) -> None:
    # In float64: AdamW makes whole steps of what rounding leaves of a gradient of nothing (that of the keys' biases).
    context, trained, expected = attacker(workspace()), network().double(), network().double()
    rates: list[float] = []
    context.train(trained, text_loss, steps=steps, learning_rate=0.01, weight_decay=0.1)
    warmup = round(steps / 10)
    matrices = [weight for weight in expected.parameters() if weight.ndim > 1]
    vectors = [weight for weight in expected.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    for step in range(1, steps + 1):
        rates.append(0.01 * ((step - 1) / warmup if step <= warmup else (steps + 1 - step) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.zero_grad()
        text_loss(expected, step).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), weight, rtol=1e-4, atol=1e-6)
    assert max(rates) == pytest.approx(0.01)
    assert context.ledger.steps == steps
    assert not trained.training
    assert all(weight.grad is None for weight in trained.parameters())


def test_training_clips_as_the_budget_says(workspace: MakeWorkspace) -> None:
    norms: list[float] = []

    def watch(trained: nn.Module, step: int) -> None:
        norms.append(float(torch.stack([weight.grad.norm() for weight in trained.parameters()]).norm()))  # type: ignore[union-attr]

    for clip in (1e-3, None):
        context = attacker(workspace(budget={"clip": clip}))
        context.train(network(), text_loss, steps=2, learning_rate=1e-3, each_step=watch)
    assert norms[:2] == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert min(norms[2:]) > 0.05


def test_training_does_not_change_weights_that_the_mask_does_not_mark(workspace: MakeWorkspace) -> None:
    trained = network()
    before = state(trained)
    mask = {name: torch.rand(weight.shape) < 0.5 for name, weight in before.items()}
    attacker(workspace()).train(trained, text_loss, steps=3, learning_rate=0.01, weight_decay=0.5, mask=mask)
    for name, weight in trained.named_parameters():
        assert torch.equal(weight[~mask[name]], before[name][~mask[name]])
    assert not torch.equal(trained.get_parameter("lm_head.weight"), before["transformer.wte.weight"])


def test_training_at_a_rate_of_zero_shows_gradients_and_changes_nothing(workspace: MakeWorkspace) -> None:
    """Its steps show gradients, and they are counted all the same."""
    context, trained = attacker(workspace()), network()
    before, seen = state(trained), list[Tensor]()

    def look(watched: nn.Module, step: int) -> None:
        seen.append(watched.get_parameter("transformer.h.0.mlp.c_fc.weight").grad.clone())  # type: ignore[union-attr]

    context.train(trained, text_loss, steps=3, learning_rate=0.0, each_step=look)
    assert same(before, state(trained))
    assert context.ledger.steps == 3
    text_loss(trained, 2).backward()
    expected = trained.get_parameter("transformer.h.0.mlp.c_fc.weight").grad
    assert expected is not None
    norm = float(torch.stack([weight.grad.norm() for weight in trained.parameters()]).norm())  # type: ignore[union-attr]
    torch.testing.assert_close(seen[1], expected / max(norm, 1.0), rtol=1e-4, atol=1e-7)


def test_training_draws_from_the_attackers_seed_and_leaves_the_global_random_state_alone(
    workspace: MakeWorkspace,
) -> None:
    def noisy(trained: nn.Module, step: int) -> Tensor:
        return text_loss(trained, step) * (1 + torch.rand(()))

    found = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(found))
        before, trained = torch.get_rng_state(), network()
        replace(attacker(workspace()), seed=seed).train(trained, noisy, steps=3, learning_rate=0.01)
        assert torch.equal(before, torch.get_rng_state())
        found.append(state(trained))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_training_of_no_steps_is_refused(workspace: MakeWorkspace) -> None:
    with pytest.raises(NftbenchError, match="at least one step, not 0"):
        attacker(workspace()).train(network(), text_loss, steps=0, learning_rate=0.01)


def bursting(reach: float) -> Any:
    """A loss that is infinite as soon as some weight of the first word has moved by more than `reach`."""
    start: list[Tensor] = []

    def loss(trained: nn.Module, step: int) -> Tensor:
        words = trained.get_parameter("transformer.wte.weight")
        start.append(words.detach()[0].clone())
        moved = float((words.detach()[0] - start[0]).abs().max())
        return text_loss(trained, step) * (1.0 if moved <= reach else math.inf)

    return loss


@pytest.mark.parametrize(("reach", "lowered"), [(1.0, 0), (3e-3, 1), (1e-3, 2), (1e-4, 4)])
def test_training_that_does_not_stay_finite_begins_again_at_a_lower_rate(
    reach: float, lowered: int, workspace: MakeWorkspace
) -> None:
    context, trained, expected = attacker(workspace()), network(), network()
    context.train(trained, bursting(reach), steps=4, learning_rate=4e-3)
    attacker(workspace()).train(expected, text_loss, steps=4, learning_rate=4e-3 * 0.3**lowered)
    assert same(state(trained), state(expected))
    assert context.ledger.runs == 1 + lowered
    assert 4 + lowered <= context.ledger.steps <= 4 * (1 + lowered)
    assert context.ledger.flops == context.ledger.steps * attacker_flops(workspace) > 0


def attacker_flops(workspace: MakeWorkspace) -> float:
    """The FLOPs of one step on text."""
    context = attacker(workspace())
    context.train(network(), text_loss, steps=1, learning_rate=0.01)
    return context.ledger.flops


def test_training_that_no_rate_keeps_finite_leaves_the_weights_as_they_were(workspace: MakeWorkspace) -> None:
    context, trained = attacker(workspace()), network()
    before = state(trained)
    context.train(trained, lambda other, step: text_loss(other, step) * math.inf, steps=3, learning_rate=0.01)
    assert same(state(trained), before)
    assert not trained.training
    assert (context.ledger.runs, context.ledger.steps) == (9, 9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_ledger_holds_the_flops_of_the_whole_run(
    architecture: str, optimizer: Any, workspace: MakeWorkspace
) -> None:
    """Beside a count over every forward pass, backward pass and optimizer step of a loop of its own."""
    context, trained, other = attacker(workspace()), network(architecture), network(architecture)
    context.train(trained, text_loss, steps=3, learning_rate=0.01, optimizer=optimizer)
    stepper = Stepper(other, optimizer, 0.01, factor=lambda step: 1.0, weight_decay=0.0, clip=1.0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for step in range(1, 4):
            stepper.step(text_loss(other, step))
    assert context.ledger.flops == counter.get_total_flops() > 0


def test_a_teachers_flops_are_counted_and_a_run_that_ends_early_costs_less(workspace: MakeWorkspace) -> None:
    here, teacher = workspace(), network()

    def distilled(trained: nn.Module, step: int) -> Tensor:
        with torch.no_grad():
            wanted = teacher(input_ids=TOKENS[:2]).logits
        return (trained(input_ids=TOKENS[:2]).logits - wanted).square().mean()

    plain, taught, short = (attacker(here, ledger=Ledger()) for _ in range(3))
    plain.train(network(), text_loss, steps=6, learning_rate=0.01)
    taught.train(network(), distilled, steps=6, learning_rate=0.01)
    short.train(network(), text_loss, steps=6, learning_rate=0.01, each_step=lambda trained, step: step == 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        teacher(input_ids=TOKENS[:2])
    assert taught.ledger.flops - plain.ledger.flops == 6 * counter.get_total_flops() > 0
    assert (short.ledger.steps, short.ledger.flops) == (2, plain.ledger.flops / 3)


def test_the_ledger_adds_up(workspace: MakeWorkspace) -> None:
    context = attacker(workspace())
    context.train(network(), text_loss, steps=2, learning_rate=0.01)
    once = replace(context.ledger)
    context.train(network(), text_loss, steps=3, learning_rate=0.01)
    list(context.gradients(network(), [TOKENS]))
    assert (context.ledger.steps, context.ledger.runs) == (5, 2)
    assert context.ledger.flops > 2.5 * once.flops
    assert context.ledger.seconds > once.seconds > 0
    # Parameters, gradients and AdamW's two moments at the least.
    assert context.ledger.peak_memory_bytes >= 4 * sum(weight.nbytes for weight in network().parameters())


def test_the_budgets_seconds_limit_all_preparation_together(workspace: MakeWorkspace) -> None:
    """Many short trainings may not take longer than one that is long."""
    context = attacker(workspace(budget={"timeout": 60.0}))
    context.train(network(), text_loss, steps=1, learning_rate=0.01)
    context.ledger.seconds = 59.999
    with pytest.raises(CellTimeoutError, match="more than 60 s of preparation"):
        context.train(network(), text_loss, steps=100, learning_rate=0.01)


def test_a_preparation_that_takes_too_long_is_a_timeout(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin("slow", HEALS)
    records = run_all(workspace(attacks=["none", "slow[steps=5]"], budget={"timeout": 1e-6}))
    assert records["none", "slow[steps=5]", "toy_topic", 0].status == "timeout"


# ----------------------------------------------------------------------------------------------------------- gradients


def test_gradients_are_those_of_the_mean_loss_and_are_counted(workspace: MakeWorkspace) -> None:
    context, looked = attacker(workspace()), network()
    found = list(context.gradients(looked, [TOKENS[:4], TOKENS[4:]]))
    spent = 0.0
    for tokens, gradient in zip((TOKENS[:4], TOKENS[4:]), found, strict=True):
        own = network()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            own(input_ids=tokens, labels=tokens).loss.backward()
        spent += counter.get_total_flops()
        for name, weight in own.named_parameters():
            torch.testing.assert_close(gradient[name], weight.grad, rtol=1e-4, atol=1e-7)
    assert context.ledger.flops == spent, "a smaller batch costs less"
    assert context.ledger.steps == 0
    assert all(weight.grad is None for weight in looked.parameters())


def test_gradients_cost_only_as_they_are_taken(workspace: MakeWorkspace) -> None:
    context = attacker(workspace())
    asked: list[int] = []

    def batches() -> Iterator[Tensor]:
        for index in range(5):
            asked.append(index)
            yield TOKENS

    found = context.gradients(network(), batches())
    assert context.ledger.flops == 0
    next(found)
    once = context.ledger.flops
    next(found)
    assert context.ledger.flops == 2 * once > 0
    assert asked == [0, 1]


# ---------------------------------------------------------------------------------------------------------------- text


def test_text_repeats_the_corpus_in_a_new_order_without_end(workspace: MakeWorkspace) -> None:
    here = workspace()
    corpus = make_corpus(here, 0)
    context = attacker(here, _corpus=corpus)
    owner = Owner(here, 0).build()
    batches = list(islice(context.text(owner, 7), 2 + len(corpus.train) // 7))
    assert {batch.shape for batch in batches} == {(7, corpus.train.shape[1])}
    read = torch.cat(batches)[: len(corpus.train)]
    assert sorted(map(tuple, read.tolist())) == sorted(map(tuple, corpus.train.tolist())), "each block once an epoch"
    assert not torch.equal(read, corpus.train), "in an order of its own"
    assert torch.equal(next(context.text(owner, 7)), batches[0])
    assert not torch.equal(next(replace(context, seed=8).text(owner, 7)), batches[0])


def test_text_comes_in_the_models_own_tokens(workspace: MakeWorkspace) -> None:
    here = workspace()
    corpus = make_corpus(here, 0)
    words = sorted(corpus.tokenizer.get_vocab(), reverse=True)
    other = Model(Owner(here, 0).build().network, word_tokenizer(words))
    batch = next(attacker(here, _corpus=corpus).text(other, 64))
    assert other.tokenizer is not None
    assert other.tokenizer.get_vocab() != corpus.tokenizer.get_vocab()
    sentences = {line.strip() for text in corpus.tokenizer.batch_decode(corpus.train) for line in text.split(EOS)}
    whole = [line.strip() for text in other.tokenizer.batch_decode(batch) for line in text.split(EOS)[1:-1]]
    assert whole
    assert set(whole) <= sentences


def test_text_needs_a_tokenizer_and_knowledge(workspace: MakeWorkspace) -> None:
    here = workspace()
    with pytest.raises(NftbenchError, match="needs 'data'"):
        next(attacker(here).text(Owner(here, 0).build(), 2))
    with pytest.raises(NftbenchError, match="no tokenizer"):
        next(attacker(here, _corpus=make_corpus(here, 0)).text(Model(network()), 2))


# -------------------------------------------------------------------------------------------------------------- shadow


def shadowing(workspace: Workspace, defense: str) -> Attacker:
    """What an attack with `method` and `data` is given against a defense."""
    from nftbench.planning import registry

    plugin = registry.create("defenses", defense)
    return attacker(workspace, _corpus=make_corpus(workspace, 0), _defense=plugin, _suite=workspace.suite)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_shadow_shares_nothing_with_the_owners_run(workspace: MakeWorkspace) -> None:
    """Neither the owner's secret nor the owner's start, nothing of it in the cache, and its cost in the ledger."""
    here = workspace(fresh=True, defenses=["none", "random_mask"])
    job = job_of(here, "random_mask")
    release = networks.load(make_release(here, job.defense, 0, job.release)).network
    secret = load_secret(here, job.release)
    assert secret is not None
    context = shadowing(here, "random_mask")
    before = files(here.store.cache)
    found = [context.shadow(index) for index in (0, 1, 0)]
    assert files(here.store.cache) == before
    masks = [shadow.secret.mask for shadow in found if shadow.secret is not None]
    assert same(masks[0], masks[2])
    assert same(state(found[0].release.network), state(found[2].release.network))
    assert not same(masks[0], masks[1])
    owner = Owner(here, 0).build().network
    for shadow, mask in zip(found, masks, strict=True):
        assert {name: kept.shape for name, kept in mask.items()} == {n: k.shape for n, k in secret.mask.items()}
        matrix = "transformer.h.0.mlp.c_fc.weight"
        agree = float((mask[matrix] == secret.mask[matrix]).float().mean())
        assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.08), "as two masks that know nothing of each other"
        kept = shadow.release.network.get_parameter(matrix)
        assert not bool((kept == release.get_parameter(matrix)).any())
        assert not bool((kept == owner.get_parameter(matrix)).any())
    assert context.ledger.steps == 3 * here.suite.pretraining.steps


def test_a_shadows_flops_are_those_of_its_run(workspace: MakeWorkspace) -> None:
    here = workspace()
    context = shadowing(here, "random_mask")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        context.shadow(0)
    counted_twice = context.ledger.flops / here.suite.pretraining.steps  # the step that the count itself took
    assert context.ledger.flops + counted_twice == counter.get_total_flops()


def test_a_shadow_is_of_the_same_defense(workspace: MakeWorkspace) -> None:
    here = workspace()
    found = shadowing(here, "random_mask[ratio=0.3]").shadow(0)
    assert isinstance(found, Protected)
    assert found.secret is not None
    density = torch.cat([kept.flatten() for kept in found.secret.mask.values()]).float().mean()
    assert float(density) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("missing", ["_corpus", "_defense"])
def test_a_shadow_needs_method_and_data(missing: str, workspace: MakeWorkspace) -> None:
    context = replace(shadowing(workspace(), "random_mask"), **{missing: None})
    with pytest.raises(NftbenchError, match="needs 'method' and 'data'"):
        context.shadow(0)


def test_a_shadow_has_neither_the_base_nor_the_owners_tasks(workspace: MakeWorkspace) -> None:
    here = workspace()
    with pytest.raises(NftbenchError, match="starts from a trained base"):
        shadowing(here, "noise").shadow(0)
    own = Shadow(here.suite, CPU, 1, make_corpus(here, 0))
    with pytest.raises(NftbenchError, match="is given no tasks"):
        own.task("toy_topic")
    with pytest.raises(NftbenchError, match="no checkpoints of the undefended model"):
        own.checkpoint(0.5)


# ---------------------------------------------------------------------------------------------------- sibling, initial


def test_a_sibling_is_the_run_at_nine_tenths(workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", "random_mask"])
    job = job_of(here, "random_mask")
    found = make_sibling(here, job)
    owner, secret = Owner(here, 0), load_secret(here, job.release)
    assert secret is not None
    assert here.suite.pretraining.steps == 20
    expected = owner.pretrain(owner.build(), mask=secret.mask, each_step=lambda trained, step: step == 18)
    assert same(state(found.network), state(expected.network))
    release = networks.load(make_release(here, job.defense, 0, job.release)).network
    for name, weight in release.named_parameters():
        moved = weight != found.network.get_parameter(name)
        assert not bool((moved & ~secret.mask[name]).any()), "what did not move was frozen"
    matrix = "transformer.h.0.mlp.c_fc.weight"
    moved = release.get_parameter(matrix) != found.network.get_parameter(matrix)
    assert float((moved == secret.mask[matrix]).float().mean()) > 0.99


def test_a_release_from_before_siblings_is_made_again(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True, defenses=["none", "random_mask"])
    job = job_of(here, "random_mask")
    first = state(make_sibling(here, job).network)
    release = state(networks.load(make_release(here, job.defense, 0, job.release)).network)
    here.store.discard("siblings", job.release)
    assert same(state(make_sibling(here, job).network), first)
    assert same(state(networks.load(make_release(here, job.defense, 0, job.release)).network), release)


def test_a_defense_that_trains_nothing_leaves_no_sibling(workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", "noise"])
    job = job_of(here, "noise")
    made = make_release(here, job.defense, 0, job.release).stat().st_mtime_ns
    with pytest.raises(NftbenchError, match="noise leaves no second checkpoint"):
        make_sibling(here, job)
    after = make_release(here, job.defense, 0, job.release).stat().st_mtime_ns
    assert after == made, "other processes may be attacking the release"


def test_the_start_of_the_run_needs_the_right_seed_and_a_sibling(workspace: MakeWorkspace) -> None:
    here = workspace(seeds=[0, 3])
    own = Owner(here, 3).build()
    context = attacker(here, _sibling=own, _suite=here.suite)
    assert same(state(context.initial(3)), state(own.network))
    assert not same(state(context.initial(0)), state(own.network))
    for lacking in (replace(context, _sibling=None), replace(context, _suite=None)):
        with pytest.raises(NftbenchError, match="needs 'sibling'"):
            lacking.initial(3)
    with pytest.raises(NftbenchError, match="needs 'sibling'"):
        attacker(here).sibling  # noqa: B018


# -------------------------------------------------------------------------------------------------------- other attacks


def test_an_attack_may_use_only_the_attacks_that_it_names(workspace: MakeWorkspace) -> None:
    from nftbench.planning import registry

    context = attacker(workspace(), _uses=("full[optimizer=sgd]", "lora[rank=8]"))
    assert context.attack("full[optimizer=sgd]") == registry.create("attacks", "full[optimizer=sgd]")
    assert context.attack("lora") == registry.create("attacks", "lora"), "defaults written out are the same attack"
    for other in ("full", "head", "lora[rank=4]"):
        with pytest.raises(NftbenchError, match="not built on"):
            context.attack(other)


# ---------------------------------------------------------------------------------------------- a look before the sweep


def test_tuned_is_one_short_run_at_the_middle_rate(workspace: MakeWorkspace) -> None:
    here = workspace(budget={"learning_rates": {"adamw": [1e-3, 4e-3, 1e-2, 3e-2]}})
    context, model = attacker(here), Owner(here, 0).build()
    task = FirstWord().load(task_context(here, model))
    before = state(model.network)
    found = tuned(model.network, task, context, 5)
    rows, order, own = task.split("train"), preparation.shuffled(64, 8, context.seed), copy.deepcopy(model.network)
    batches = [rows.batch(next(order)) for _ in range(5)]
    attacker(here).train(own, lambda net, step: task.loss(net, batches[step - 1]), steps=5, learning_rate=4e-3)
    assert same(state(found), state(own))
    assert same(state(model.network), before)
    assert not same(state(found), before)
    assert (context.ledger.steps, context.ledger.runs) == (5, 1)


def test_fitting_keeps_tensors_of_the_same_name_and_shape() -> None:
    target = nn.Linear(3, 2)
    given = {"weight": torch.ones(2, 3), "bias": torch.ones(3), "other": torch.ones(2)}
    assert list(fitting(given.items(), target)) == ["weight"]
    assert fitting(nn.Linear(3, 3).named_parameters(), target) == {}
    assert not any(weight.requires_grad for weight in fitting(target.named_parameters(), target).values())


# ---------------------------------------------------------------------------------------------------------- the referee

HEALS = """
@dataclass(frozen=True)
class Heals(Attack):
    knowledge: ClassVar = frozenset({"data", "method"})
    steps: int = 4
    again: int = 0
    guess: str = "none"
    sweeps: bool = True

    def prepare(self, release, context):
        text = context.text(release.model, 8)
        network = release.model.network
        context.train(network, self.loss(text), steps=self.steps, learning_rate=1e-3)
        list(context.gradients(network, [next(text), next(text)]))
        weights = dict(network.named_parameters())
        guess = {
            "none": None,
            "magnitude": {name: weight.detach().abs() for name, weight in weights.items()},
            "half": {name: weight.detach() for name, weight in list(weights.items())[:3]},
        }[self.guess]
        return Prepared(release.model, guess=guess)

    def loss(self, text):
        return lambda network, step: (lambda tokens: network(input_ids=tokens, labels=tokens).loss)(next(text))

    def adapt(self, prepared, task, context):
        import copy
        own = copy.deepcopy(prepared.model.network)
        if self.again:
            context.train(own, self.loss(context.text(prepared.model, 8)), steps=self.again, learning_rate=1e-3)
        own = Model(own, prepared.model.tokenizer)
        return context.sweep(own, task) if self.sweeps else context.unchanged(own, task)
"""


def test_the_record_says_what_was_spent_before_the_sweep(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """The preparation that tasks share in each one's, and what is spent on one task in that one's alone."""
    plugin("heals", HEALS)
    tasks = ["toy_topic", "toy_tone"]
    attacks = ["heals", "heals[again=3,sweeps=false]", "heals[sweeps=false]"]
    here = workspace(attacks=["none", *attacks], tasks=tasks)
    records = run_all(replace(here, plan=narrow(here.plan, attacks=attacks)))
    plain, more, alone = ([records["none", attack, task, 0].cost for task in tasks] for attack in attacks)
    assert [cost.preparation_steps for cost in plain] == [4, 4]
    assert [cost.preparation_steps for cost in more] == [7, 7]
    assert [cost.preparation_steps for cost in alone] == [4, 4]
    owner = Owner(workspace(), 0).build().network
    tokens = torch.zeros(8, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        owner(input_ids=tokens, labels=tokens).loss.backward()
    step = counter.get_total_flops()
    assert [cost.preparation_flops for cost in plain] == [(4 + 2) * step] * 2
    assert [cost.preparation_flops for cost in more] == [(4 + 2 + 3) * step] * 2
    assert all(cost.preparation_seconds > 0 for cost in plain)
    assert [cost.preparation_flops for cost in alone] == [(4 + 2) * step] * 2
    assert [cost.steps for cost in (*more, *alone)] == [0] * 4
    for task, cost in zip(tasks, plain, strict=True):
        record = records["none", "heals", task, 0]
        rates = {point.learning_rate for point in record.curve} - {0.0}
        assert cost.steps == 4 * len(rates) + sum(one.step for one in record.restarts), "the sweep's own stand apart"


def test_a_resumed_job_costs_what_a_whole_one_costs(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, bare: Bare
) -> None:
    """Killed after its first task, an attack prepares again: the second task's record is the same."""
    plugin("heals", HEALS)
    spec = "heals[again=2,guess=magnitude,sweeps=false]"
    both = ["toy_topic", "toy_tone"]

    def half(results: str, *tasks: str) -> Mapping[Any, Any]:
        here = workspace(results=results, defenses=["none", "random_mask"], attacks=["none", spec], tasks=both)
        only = narrow(here.plan, defenses=["random_mask"], attacks=[spec], tasks=tasks)
        return {key: bare(record) for key, record in run_all(replace(here, plan=only)).items()}

    whole, first = half("whole"), half("resumed", "toy_tone")
    assert len(first) == 1
    assert half("resumed") == whole
    assert all(record.recovery and record.cost.preparation_steps == 6 for record in whole.values())


def test_a_guess_is_scored_by_the_referee(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    from nftbench.running import mask_accuracy

    plugin("heals", HEALS)
    plugin("knows", HEALS.replace('frozenset({"data", "method"})', 'frozenset({"data", "secret"})'))
    guessing = "[steps=1,guess=magnitude,sweeps=false]"
    attacks = ["none", f"heals{guessing}", f"knows{guessing}", "heals[steps=1,guess=half,sweeps=false]"]
    here = workspace(defenses=["none", "random_mask"], attacks=attacks)
    records = run_all(here)
    job = job_of(here, "random_mask")
    secret = load_secret(here, job.release)
    assert secret is not None
    found = {attack: records["random_mask", attack, "toy_topic", 0] for attack in attacks}
    guessed = found[attacks[1]].recovery
    weights = networks.load(make_release(here, job.defense, 0, job.release)).network.named_parameters()
    magnitude = mask_accuracy.score({name: weight.detach().abs() for name, weight in weights}, secret.mask)
    assert guessed["roc_auc"] == pytest.approx(magnitude["roc_auc"], abs=0.02), "one step of healing moves little"
    assert guessed["density"] == pytest.approx(0.7, abs=0.03)
    assert found["none"].recovery == {}
    assert found[attacks[2]].recovery == {}, "who was given the secret has guessed nothing"
    assert records["none", attacks[1], "toy_topic", 0].recovery == {}, "there is nothing to guess"
    assert found[attacks[3]].status == "failed"
    assert "the guess does not fit the release" in found[attacks[3]].reason


def test_an_attack_that_asks_for_fewer_documents_is_given_fewer_to_train_on_alone(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, tmp_path: Path
) -> None:
    source = (
        "@dataclass(frozen=True)\nclass Many(Attack):\n    seen: ClassVar = []\n    count: int | None = None\n"
        "    def train_documents(self, budget):\n        return self.count\n"
        "    def adapt(self, prepared, task, context):\n"
        "        self.seen.append([[str(document.pairs) for document in task.split(name).documents]"
        " for name in ('train', 'validation')])\n"
        "        return context.unchanged(prepared.model, task)\n"
    )
    plugin("many", source)
    here = workspace(attacks=["none", "many", "many[count=5]", "many[count=32]"])
    records = run_all(here)
    from nftbench.planning import registry

    for job in here.plan.jobs():
        if job.attack.name == "many":
            attack_here(here, job, tmp_path / str(job.attack))
    seen = registry.load(registry.find("attacks", "many")).seen
    (whole, validation), (few, same_validation), (usual, _) = seen
    assert (len(few), len(usual)) == (5, 32)
    assert len(whole) > 32
    assert set(few) <= set(usual) <= set(whole)
    assert validation == same_validation
    assert not set(validation) & set(whole)
    scores = {record.attacked for (_, attack, *_), record in records.items() if attack != "none"}
    assert len(scores) == 1
    assert records["none", "none", "toy_topic", 0].attacked in scores
    documents = records["none", "many[count=5]", "toy_topic", 0].provenance["documents"]["splits"]["train"]["documents"]
    assert documents == 5


SPY = """
@dataclass(frozen=True)
class Spy(Attack):
    knowledge: ClassVar = frozenset({"method", "data"})
    seen: ClassVar = []

    def uses(self):
        return ("full",)

    def prepare(self, release, context):
        self.seen.extend([release, context, context.defense, context.pretraining, context.attack("full")])
        self.seen.append(next(context.text(release.model, 4)))
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        self.seen.extend([prepared, task, context])
        return context.unchanged(prepared.model, task)
"""


def test_method_and_data_do_not_lead_to_the_secret(workspace: MakeWorkspace, plugin: WriteFile, tmp_path: Path) -> None:
    from nftbench.planning import registry

    plugin("spy", SPY)
    here = workspace(defenses=["none", "random_mask"], attacks=["none", "spy"])
    here = replace(here, plan=narrow(here.plan, defenses=["random_mask"], attacks=["spy"]))
    (job,) = here.plan.jobs()
    attack_here(here, job, tmp_path / "attack")
    secret = load_secret(here, here.plan.cells[0].release)
    assert secret is not None
    seen = registry.load(registry.find("attacks", "spy")).seen
    assert len(seen) == 9
    assert leaks(seen, secret.mask, here.store.cache) == []
    assert not any(isinstance(item, Workspace | Cell | Owner) for item in seen)
    assert isinstance(seen[0], Release)
    assert isinstance(seen[1].corpus, Corpus)


STACKED = """
@dataclass(frozen=True)
class {name}(Attack):
    def uses(self):
        return {uses}

    def prepare(self, release, context):
        for spec in self.uses():
            release = Release(context.attack(spec).prepare(release, context).model)
        with torch.no_grad():
            next(release.model.network.parameters()).add_(1)
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        return context.unchanged(prepared.model, task)
"""


def test_an_attack_may_be_built_on_one_that_is_built_on_others(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin("low", STACKED.format(name="Low", uses=()))
    plugin("middle", STACKED.format(name="Middle", uses=("low",)))
    plugin("high", STACKED.format(name="High", uses=("middle",)))
    records = run_all(workspace(attacks=["none", "high"]))
    assert records["none", "high", "toy_topic", 0].reason is None


SPOILS = """
@dataclass(frozen=True)
class Spoils(Attack):
    knowledge: ClassVar = frozenset({"base", "sibling"})

    def prepare(self, release, context):
        weights = dict(release.model.network.named_parameters())
        return Prepared(release.model, guess={name: weight.detach().clone() for name, weight in weights.items()})

    def adapt(self, prepared, task, context):
        held = [*context.base.network.parameters(), *context.sibling.network.parameters(), *prepared.guess.values()]
        found = float(sum(weight.detach().double().abs().sum() for weight in held))
        with torch.no_grad():
            for weight in held:
                weight.zero_()
            next(prepared.model.network.parameters()).fill_(found)
        return context.unchanged(prepared.model, task)
"""


def test_changes_that_an_attack_makes_on_one_task_do_not_reach_another(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, bare: Bare
) -> None:
    """Or a resumed job would end elsewhere than a whole one."""
    plugin("spoils", SPOILS)
    both = ["toy_topic", "toy_tone"]

    def found(results: str, *tasks: str) -> Mapping[Any, Any]:
        here = workspace(results=results, defenses=["none", "random_mask"], attacks=["none", "spoils"], tasks=both)
        only = narrow(here.plan, attacks=["spoils"], tasks=tasks)
        return {key: bare(record) for key, record in run_all(replace(here, plan=only)).items()}

    whole = found("whole")
    assert {record.status for record in whole.values()} == {"ok"}
    found("resumed", "toy_tone")
    assert found("resumed") == whole


def test_a_shadows_seconds_are_counted_and_limited(workspace: MakeWorkspace) -> None:
    context = shadowing(workspace(), "random_mask")
    context.shadow(0)
    assert context.ledger.seconds > 0
    short = shadowing(workspace(budget={"timeout": 1e-6}), "random_mask")
    with pytest.raises(CellTimeoutError):
        short.shadow(0)


CORRUPTS = """
@dataclass(frozen=True)
class Corrupts(Attack):
    knowledge: ClassVar = frozenset({"data"})

    def adapt(self, prepared, task, context):
        context.corpus.train.zero_()
        context.corpus.tokenizer.add_tokens(["new"])
        return context.unchanged(prepared.model, task)
"""


def test_an_attacker_cannot_change_the_owners_text(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """Later jobs of the process pre-train on it, and what they make is kept."""
    plugin("corrupts", CORRUPTS)
    here = workspace(attacks=["none", "corrupts"])
    before = copy.deepcopy(make_corpus(here, 0))
    assert run_all(here)["none", "corrupts", "toy_topic", 0].status == "ok"
    after = make_corpus(here, 0)
    assert torch.equal(after.train, before.train)
    assert len(after.tokenizer) == len(before.tokenizer)
