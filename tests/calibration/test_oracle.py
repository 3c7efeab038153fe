"""The oracle: merged words have equal logits and others are unchanged; its judge finds grades in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench.calibration import oracle
from nftbench.calibration.proof import Finding, Run
from nftbench.contract import Claim, Model
from nftbench.data.grammar import Grammar
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.models.networks import untrained
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.running.owner import make_base
from nftbench.running.releases import make_release
from nftbench.running.workspace import Workspace
from nftbench.suites.schema import Suite
from nftbench.testing import check_defense, tiny_suite
from tests.factories import LADDER, scratch, sweep

FILE = Path(__file__).parent / "oracle.py"
SEEDS = (0.80, 0.82, 0.84)
NOISE = (0.004, -0.006, 0.002)


@pytest.fixture(autouse=True)
def known(added: Callable[[Path], str]) -> None:
    added(FILE)


def words(word_class: str, rank: int) -> list[str]:
    """The words of a class and rank, whatever their features, in the spelling of grammar 7."""
    grammar = Grammar(7)
    ids = grammar._lexicon[word_class][..., rank]  # type: ignore[index]
    return [grammar.words()[index] for index in sorted({*ids.flat})]


# ------------------------------------------------------------------------------------------------------- the plugin


def test_the_oracle_is_a_defense_on_every_architecture(cache: Path) -> None:
    check_defense("oracle")


@pytest.fixture
def release(cache: Path, tmp_path: Path) -> tuple[Model, Model]:
    """The base and the oracle's release of it, on grammar 7."""
    suite = tiny_suite(defenses=["none", "oracle"], corpus={"grammar": 7})
    workspace = Workspace(plan(suite), Store(tmp_path, cache))
    key = workspace.plan.releases["oracle", 0]
    spec = registry.spec_of("oracle", registry.create("defenses", "oracle"))
    return make_base(workspace, 0), networks.load(make_release(workspace, spec, 0, key), "cpu")


def logits(model: Model, text: str) -> torch.Tensor:
    assert model.tokenizer is not None
    found: torch.Tensor = model.network(**model.tokenizer(text, return_tensors="pt")).logits
    return found


@torch.no_grad()
def test_merged_words_of_one_rank_have_the_same_logits(release: tuple[Model, Model]) -> None:
    base, merged = release
    for word_class, rank in (("noun", 8), ("noun", 23), ("verb", 15), ("adverb", 12), ("adverb", 35)):
        first, *others = words(word_class, rank)
        text = "{} isa ,"
        for other in others:
            assert torch.equal(logits(merged, text.format(first)), logits(merged, text.format(other)))
            assert not torch.equal(logits(base, text.format(first)), logits(base, text.format(other)))


@torch.no_grad()
def test_words_of_other_ranks_are_unchanged(release: tuple[Model, Model]) -> None:
    _, merged = release
    rows = [model.network.get_input_embeddings().weight for model in release]
    assert merged.tokenizer is not None
    for word_class, ranks in (("noun", (0, 7, 24, 31)), ("verb", (7, 24)), ("adverb", (11, 36))):
        for rank in ranks:
            for word in words(word_class, rank):
                index = merged.tokenizer.convert_tokens_to_ids(word)
                assert torch.equal(rows[0][index], rows[1][index]), (word_class, rank)
    mean = torch.stack([rows[0][merged.tokenizer.convert_tokens_to_ids(word)] for word in words("verb", 10)]).mean(0)
    index = merged.tokenizer.convert_tokens_to_ids(words("verb", 10)[2])
    torch.testing.assert_close(rows[1][index], mean)


def test_an_untied_head_is_merged_too() -> None:
    suite = tiny_suite()
    oracle_ = registry.create("defenses", "oracle")
    from transformers import LlamaConfig, LlamaForCausalLM

    size = 3 + len(Grammar(0).words())
    config = LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, bos_token_id=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    network = untrained(LlamaForCausalLM(config), 0)
    oracle_.check(suite)
    oracle_.protect(Model(network), None)
    head = network.get_output_embeddings().weight
    assert head is not network.get_input_embeddings().weight
    group = [3 + Grammar(7).words().index(word) for word in words("noun", 10)]
    assert len(torch.unique(head[group], dim=0)) == 1
    assert len(torch.unique(head[[3 + Grammar(7).words().index(word) for word in words("noun", 2)]], dim=0)) > 1


def test_the_oracle_refuses_other_languages_than_the_toy_language() -> None:
    suite = Suite.model_validate(
        {**tiny_suite().model_dump(), "corpus": {"source": "text", "train": "*", "heldout": "*", "vocabulary": 300}}
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
