"""Which weights an attack trains: declared by the attack, worked out from its name in records that do not say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nftbench.planning import registry
from nftbench.scoring.older_records import trained_weights
from nftbench.terms import TrainedWeights
from tests.factories import record


@pytest.mark.parametrize(
    ("attack", "weights"),
    [("full", "all"), ("full[optimizer=sgd]", "all"), ("long", "all_longer"), ("head", "part"), ("layers", "part"),
     ("bitfit", "part"), ("linear_probe[solver=ridge]", "part"), ("lora", "other"), ("none", "other")],
)  # fmt: skip
def test_older_records_mean_what_the_attack_declares_today(attack: str, weights: TrainedWeights) -> None:
    assert trained_weights(record("pmp", attack, "topic", 0, 0.5)) == weights
    assert registry.create("attacks", attack).trained_weights == weights


def test_what_a_record_says_counts_whatever_the_attack_is_called() -> None:
    one = record("pmp", "full", "topic", 0, 0.5)
    assert trained_weights(replace(one, trained_weights="part")) == "part"
    assert trained_weights(replace(one, attack="mine", trained_weights="all")) == "all"
