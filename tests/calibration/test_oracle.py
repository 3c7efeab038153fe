"""The oracle: merged words have equal logits and others are unchanged; its judge finds grades in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nftbench.calibration import oracle
from nftbench.calibration.proof import Finding, Run
from nftbench.contract import Claim, Corpus, Model
from nftbench.data.grammar import grammar_of
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.models.networks import untrained
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.running.owner import make_base
from nftbench.running.releases import make_release
from nftbench.running.workspace import Workspace, make_corpus
from nftbench.suites.schema import Suite
from nftbench.testing import check_defense, tiny_suite
from tests.factories import LADDER, scratch, sweep

FILE = Path(__file__).parent / "oracle.py"
SEEDS = (0.80, 0.82, 0.84)
NOISE = (0.004, -0.006, 0.002)


@pytest.fixture(autouse=True)
def known(added: Callable[[Path], str]) -> None:
    added(FILE)


CORPUS = {"sentences": 6000}


@pytest.fixture
def text(cache: Path, tmp_path: Path) -> Corpus:
    """A corpus with every word in it."""
    return make_corpus(Workspace(plan(tiny_suite(corpus=CORPUS)), Store(tmp_path, cache)), 0)


# ------------------------------------------------------------------------------------------------------- the plugin


def test_the_oracle_is_a_defense_on_every_architecture(cache: Path) -> None:
    check_defense("oracle")


@pytest.fixture
def release(cache: Path, tmp_path: Path) -> tuple[Model, Model]:
    """The base and the oracle's release of it."""
    workspace = Workspace(plan(tiny_suite(defenses=["none", "oracle"], corpus=CORPUS)), Store(tmp_path, cache))
    key = workspace.plan.releases["oracle", 0]
    spec = registry.spec_of("oracle", registry.create("defenses", "oracle"))
    return make_base(workspace, 0), networks.load(make_release(workspace, spec, 0, key), "cpu")


def test_the_oracle_learns_the_classes_of_words_from_the_text(text: Corpus) -> None:
    grammar = grammar_of(tiny_suite(), 0)
    for word_class, found in defenses_oracle().classes(text).items():
        true = {grammar._vocabulary[index] for index in grammar._lexicon[word_class].flat}  # type: ignore[index]
        assert len(true & {*text.tokenizer.convert_ids_to_tokens(found)}) > 0.97 * len(found) > 0.5 * len(true)
        counts = text.train.flatten().bincount()[found]
        assert bool((counts.diff() <= 0).all())


def defenses_oracle() -> Any:
    """The plugin's module."""
    return sys.modules[type(registry.create("defenses", "oracle")).__module__]


def logits(model: Model, text: str) -> torch.Tensor:
    assert model.tokenizer is not None
    found: torch.Tensor = model.network(**model.tokenizer(text, return_tensors="pt")).logits
    return found


@torch.no_grad()
def test_merged_words_have_the_same_logits(release: tuple[Model, Model], text: Corpus) -> None:
    base, merged = release
    groups = list(defenses_oracle().merged(0.5, text))
    assert {len(group) for group in groups} == {8, 4, 2}
    for group in groups[::7]:
        first, *others = text.tokenizer.convert_ids_to_tokens(group)
        for other in others:
            assert torch.equal(logits(merged, f"{first} isa ,"), logits(merged, f"{other} isa ,"))
            assert not torch.equal(logits(base, f"{first} isa ,"), logits(base, f"{other} isa ,"))


@torch.no_grad()
def test_other_words_are_unchanged(release: tuple[Model, Model], text: Corpus) -> None:
    base, merged = (model.network.get_input_embeddings().weight for model in release)
    groups = list(defenses_oracle().merged(0.5, text))
    changed = {word for group in groups for word in group}
    assert {int(row) for row in (base != merged).any(1).nonzero()} == changed
    assert 0.4 < len(changed) / (len(base) - 30) < 0.6
    torch.testing.assert_close(merged[groups[0][0]], base[groups[0]].mean(0))


def test_an_untied_head_is_merged_too(text: Corpus) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(text.tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, bos_token_id=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    network = untrained(LlamaForCausalLM(config), 0)
    defense = registry.create("defenses", "oracle")
    defense.check(tiny_suite())
    defense.protect(Model(network), SimpleNamespace(corpus=text))
    head = network.get_output_embeddings().weight
    assert head is not network.get_input_embeddings().weight
    assert len(torch.unique(head[next(defenses_oracle().merged(0.5, text))], dim=0)) == 1


def test_the_oracle_refuses_other_languages_than_the_toy_language() -> None:
    suite = Suite.model_validate(
        {
            **tiny_suite().model_dump(exclude={"salt"}),
            "corpus": {"source": "text", "train": "*", "heldout": "*", "vocabulary": 300},
        }
    )
    with pytest.raises(NftbenchError, match="toy language alone"):
        registry.create("defenses", "oracle").check(suite)


@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_strengths_out_of_range_are_refused(strength: float) -> None:
    with pytest.raises(NftbenchError, match="strength must be above 0"):
        registry.create("defenses", f"oracle[strength={strength:g}]")


# --------------------------------------------------------------------------------------------------------- the judge


def judged(taken: dict[str, float], utility: float = 0.75, control: float = 0.02, **claims: Any) -> Finding:
    """Grades that take so much from the attacker, beside a control that takes `control`."""

    def ends(by: float) -> list[float]:
        return [end - by + error for end, error in zip(SEEDS, NOISE, strict=True)]

    control_ends = [end - control - error for end, error in zip(SEEDS, NOISE, strict=True)]
    records: list[Record] = [*sweep("none", SEEDS), *scratch([0.4] * 3), *sweep("early_stop", control_ends)]
    for name, by in taken.items():
        records += sweep(name, ends(by), utility=utility, claim=Claim(), **claims)
    planned = tuple(CellId.of(one) for one in records)
    suite = tiny_suite(name="tiny-oracle", defenses=["none", "early_stop", *taken], seeds=[0, 1, 2], ranking=[])
    suite = suite.model_copy(update={"ladder": LADDER})
    return oracle.judge(tiny_suite(), Run(suite, planned, tuple(records)))


def test_grades_in_order_pass_and_the_weakest_may_be_too_weak() -> None:
    found = judged({"weak": 0.03, "middle": 0.15, "strong": 0.35})
    assert found.failures == ()
    assert found.notes == ("too weak to be found: weak, excess 1.0 [-1.6, 3.6]",)
    assert [(one["rank"], one["found"]) for one in found.numbers["grades"]] == [(3, False), (2, True), (1, True)]
    assert found.tables[0].rows[2][6].startswith("20.0")  # more than the weaker


def test_grades_out_of_order_are_a_failure() -> None:
    found = judged({"weak": 0.35, "strong": 0.15})
    assert any("no less than the stronger strong" in failure for failure in found.failures)


def test_an_oracle_without_a_grade_that_is_found_is_a_failure() -> None:
    found = judged({"weak": 0.005, "strong": 0.03})
    assert any(failure.startswith("strong is not found") for failure in found.failures)
    assert any(failure.startswith("weak is not found") for failure in found.failures)


def test_a_grade_that_takes_no_more_than_less_utility_does_is_a_failure() -> None:
    # at 70 % of utility the curve from early_stop, 2 points, to training from scratch, 42 points, is at 14
    found = judged({"strong": 0.13}, utility=0.6)
    assert found.failures[0].startswith("strong is not found: claim")


def test_the_derived_suite_ranks_by_the_knowledge_that_is_claimed() -> None:
    rows = ["oracle[strength=0.25]", "oracle[strength=0.50]"]
    suite = tiny_suite(defenses=["none", "early_stop", "pmp"], attacks=["full", "linear_probe"])
    derived = oracle.derive(suite, rows, ())
    assert derived.defenses == ("none", "early_stop", "oracle[strength=0.25]", "oracle")
    assert derived.ranking == {"method"}
    assert derived.attacks == ("none", "scratch", "full", "linear_probe")
    with pytest.raises(NftbenchError, match="the claim grants attackers method, which none of full uses"):
        oracle.derive(suite, rows, ["full"])
    with pytest.raises(NftbenchError, match="name its plugin"):
        oracle.derive(suite, (), ())
    with pytest.raises(NftbenchError, match="claim the same"):
        oracle.derive(suite, ["oracle", "early_stop"], ())
