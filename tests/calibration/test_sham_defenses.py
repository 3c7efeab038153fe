"""Shams look protected and are not. An attack breaks each of them, or the referee flags it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from nftbench.contract import Model
from nftbench.models import networks
from nftbench.planning.specs import canonical
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.running.releases import load_protection, make_release, open_release
from nftbench.running.workspace import Workspace, load_task, make_corpus
from nftbench.scoring.flags import GRADIENT_ERROR, plain_text_gaps
from nftbench.testing import check_defense

MakeWorkspace = Callable[..., Workspace]
FOLDER = Path(__file__).parent / "shams"
SAME_LOGITS = (
    "rescaled",
    "norm_gain",
    "cancelling_branch",
    "lying_backward",
    "frozen",
    "buffers",
    "flat_head[logits=1]",
    "silent",
    "lying_backward[strange=true]",
    "lying_backward[last_only=true,strange=true]",
    "deaf",
    "deaf[module=library]",
    "mumbling",
    "costume",
    "rescaled[padding=1e12]",
)
"""Those that compute what the base computes, up to rounding."""
EVERY = (
    *SAME_LOGITS,
    "norm_gain[factor=1e4]",
    "lying_backward[gradient=nan,strange=true]",
    "flat_head",
    "undertrained",
    "undertrained[fraction=0.8]",
    "half",
    "half[dtype=bfloat16]",
    "lock",
    "overspent",
    "overspent[steps=1.0,width=2]",
    "crammed",
    "shrunk",
)


@pytest.fixture(autouse=True, scope="module")
def shams(known: Callable[[Path], None]) -> None:
    known(FOLDER)


def release(here: Workspace, spec: str) -> tuple[Model, Any]:
    """What an attacker downloads, and what the referee found."""
    job = next(job for job in here.plan.jobs() if job.defense == canonical("defenses", spec))
    folder = make_release(here, job.defense, job.seed, job.release)
    return open_release(here, folder), load_protection(here, job.release)


@torch.no_grad()
def logits(here: Workspace, model: Model) -> Tensor:
    found: Tensor = model.network(input_ids=make_corpus(here, 0).heldout[:8]).logits
    return found


# ---------------------------------------------------------------------------------------------------------- as releases


def test_every_sham_has_a_test() -> None:
    assert {Spec.parse(spec).name for spec in EVERY} == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("spec", EVERY)
def test_a_sham_keeps_the_promises_of_a_defense(spec: str, cache: Path) -> None:
    check_defense(spec, architectures=["gpt2"])


@pytest.mark.parametrize("spec", [*SAME_LOGITS, "half", "half[dtype=bfloat16]", "flat_head"])
def test_a_sham_predicts_what_the_base_predicts(spec: str, workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", spec], trust_code=True)
    base, own = (logits(here, release(here, name)[0]) for name in ("none", spec))
    if spec == "flat_head":
        assert torch.equal(base.argmax(-1), own.argmax(-1))
        assert float(own.std()) < 1e-5 * float(base.std())
    else:
        error = {"half": 1e-2, "half[dtype=bfloat16]": 0.1, "cancelling_branch": 0.1}.get(spec, 1e-3)
        assert float((base - own).abs().max()) < error * float(base.abs().max())
        same = ("frozen", "buffers", "lying_backward", "deaf", "mumbling")
        assert not torch.equal(base, own) or Spec.parse(spec).name in same


@pytest.mark.parametrize("gradient", ["zero", "nan"])
def test_a_lying_backward_pass_is_published_and_detected(gradient: str, workspace: MakeWorkspace) -> None:
    spec = f"lying_backward[gradient={gradient},strange=true]"
    here = workspace(defenses=["none", spec], trust_code=True)
    model, protection = release(here, spec)
    loss = model.network(input_ids=make_corpus(here, 0).heldout[:2]).logits.logsumexp(-1).mean()
    loss.backward()
    claimed = model.network.get_output_embeddings().weight.grad
    assert not bool(claimed.any()) if gradient == "zero" else bool(claimed.isnan().any())
    assert not protection.gradient_error <= GRADIENT_ERROR
    assert protection.own_code, "no architecture of the library has these weights"
    assert release(here, "none")[1].gradient_error <= GRADIENT_ERROR


def test_a_backward_pass_of_the_last_layer_alone_is_detected(workspace: MakeWorkspace) -> None:
    spec = "lying_backward[last_only=true,strange=true]"
    assert release(workspace(defenses=["none", spec], trust_code=True), spec)[1].gradient_error > GRADIENT_ERROR


@pytest.mark.parametrize(
    "spec",
    ["lying_backward[gradient=nan]", "lying_backward[last_only=true]", "buffers", "deaf", "deaf[module=library]"],
)
def test_weights_that_fit_the_library_are_attacked_in_its_own_code(spec: str, workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", spec], trust_code=True)
    model, protection = release(here, spec)
    assert type(model.network) is GPT2LMHeadModel
    assert (protection.gradient_error <= GRADIENT_ERROR, protection.own_code) == (True, False)
    key = next(job.release for job in here.plan.jobs() if job.defense == canonical("defenses", spec))
    assert type(networks.load(make_release(here, canonical("defenses", spec), 0, key)).network) is not GPT2LMHeadModel


def test_a_tokenizer_that_splits_sentences_in_another_way_is_detected(workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", "mumbling"])
    (own, found), (base, honest) = release(here, "mumbling"), release(here, "none")
    words = sorted(base.tokenizer.get_vocab())
    assert own.tokenizer(words)["input_ids"] == base.tokenizer(words)["input_ids"]
    assert (found.tokenizer_changed, honest.tokenizer_changed) == (True, False)


def test_a_tokenizer_is_not_used_for_the_next_release(workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", "mumbling"])
    cell = next(cell for cell in here.plan.cells if cell.task.name == "toy_topic" and cell.defense.name == "mumbling")
    (own, _), (base, _) = release(here, "mumbling"), release(here, "none")
    mumbled, heard = (load_task(here, cell.task, cell.seed, model).split("train").batch([0]) for model in (own, base))
    unknown = base.tokenizer.unk_token_id
    assert (unknown in mumbled.ids, unknown in heard.ids) == (True, False)


@pytest.mark.parametrize("sham", ["frozen", "buffers"])
def test_a_published_release_has_no_frozen_weights(sham: str, workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", sham])
    (model, _), (base, _) = release(here, sham), release(here, "none")
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert {name for name, _ in model.network.named_parameters()} == {
        name for name, _ in base.network.named_parameters()
    }


def test_a_release_in_16_bits_is_attacked_in_32(workspace: MakeWorkspace) -> None:
    model, _ = release(workspace(defenses=["none", "half"]), "half")
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------------------------- attacked

STEPS = 100
"""Of the sweeps of `attacked`."""
NEAR = 0.05
"""Accuracy that an attack may be short of what the undefended model gives."""


def score(record: Record) -> float:
    assert record.status == "ok", record.reason
    assert record.attacked is not None
    return record.attacked.value


def naive(record: Record, rate: float) -> float:
    """What one learning rate gets, on validation; 0 where it diverges."""
    point = next(point for point in record.curve if point.learning_rate == rate and point.step == STEPS)
    return point.score or 0.0


LOOKS = [
    ("rescaled", "full"),
    ("rescaled", "full[optimizer=sgd]"),
    ("rescaled", "lora"),
    ("norm_gain", "full"),
    ("norm_gain[factor=1e4]", "full"),
    ("flat_head", "lora"),
    ("lying_backward[strange=true]", "full"),
    ("lying_backward[strange=true]", "lora"),
    ("undertrained", "full"),
    ("silent", "full"),
    ("silent", "lora"),
    ("silent", "layers"),
    ("costume", "full"),
    ("lock", "full"),
    ("lock", "rebalance"),
    ("lying_backward[last_only=true,strange=true]", "full"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sham", "attack"), LOOKS)
def test_a_sham_looks_protected_to_one_learning_rate(sham: str, attack: str, attacked: Any) -> None:
    plain, own = attacked("none", attack), attacked(sham, attack)
    rate = max(plain.curve, key=lambda point: (point.score or 0.0) if point.step else 0.0).learning_rate
    assert naive(plain, rate) > 0.75
    assert naive(own, rate) < naive(plain, rate) - 0.1


BREAKS = [
    ("rescaled", "rebalance"),
    ("rescaled[padding=1e12]", "rebalance"),
    ("costume", "rebalance"),
    ("lock", "prefix[frozen=1]"),
    ("lock", "reinit[blocks=first]"),
    ("deaf[module=library]", "full"),
    ("norm_gain", "rebalance"),
    ("norm_gain[factor=1e4]", "rebalance"),
    ("cancelling_branch", "rebalance"),
    ("flat_head", "rebalance"),
    ("flat_head[logits=1]", "rebalance"),
    ("silent", "rebalance"),
    ("lying_backward[strange=true]", "memory_light[by=mezo]"),
    ("lying_backward", "full"),
    ("deaf", "full"),
    ("mumbling", "full"),
    ("frozen", "full"),
    ("buffers", "full"),
    ("half", "full"),
    ("half[dtype=bfloat16]", "full"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sham", "attack"), BREAKS)
def test_some_attack_breaks_it(sham: str, attack: str, attacked: Any) -> None:
    weaker = "mezo" in attack or "frozen" in attack
    reached = score(attacked(sham, attack))
    # Zeroth-order steps and frozen blocks are short of `full` on any model; they are to get as far as on an honest one.
    assert reached > score(attacked("none", attack if weaker else "full")) - NEAR
    assert reached > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("sham", ["undertrained", "flat_head"])
def test_a_sham_that_predicts_worse_misses_the_utility_bar(sham: str, attacked: Any) -> None:
    own, base = (attacked(defense, "none", "bits_per_token").unattacked for defense in (sham, "none"))
    assert (base.floor - own.value) / (base.floor - base.value) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("sham", ["lying_backward[strange=true]", "lying_backward[gradient=nan,strange=true]"])
def test_gradients_that_cannot_be_trusted_are_flagged(sham: str, attacked: Any) -> None:
    assert attacked(sham, "none").protection.gradient_error > GRADIENT_ERROR


@pytest.mark.slow
@pytest.mark.parametrize(
    "sham", ["cancelling_branch", "rescaled", "norm_gain", "silent", "flat_head", "costume", "lock"]
)
def test_true_gradients_are_not_accused(sham: str, attacked: Any) -> None:
    """What weights alone make hard to train has true gradients. Attacks undo it, not this flag."""
    assert attacked(sham, "none").protection.gradient_error <= GRADIENT_ERROR


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sham", "raised"),
    [("lock", True), ("none", False), ("rescaled", False), ("undertrained", False), ("costume", False)],
)
def test_a_lock_on_the_beginning_of_text_is_seen(sham: str, raised: bool, attacked: Any) -> None:
    found = attacked(sham, "none").protection
    assert {"text", "passages", "prompts of toy_topic", "beginning of toy_topic"} == found.plain_text.keys()
    assert any(gap > most for _, gap, most in plain_text_gaps(found)) == raised


@pytest.mark.slow
def test_nan_gradients_end_in_the_status_nonfinite(attacked: Any) -> None:
    assert attacked("lying_backward[gradient=nan,strange=true]", "full").status == "nonfinite"
