"""Planted weaknesses: a release that ordinary fine-tuning gets little out of, and the attacks that were written for it.

Other weaknesses are planted where the attack itself is tested: secrets that leak through one channel in
test_mask_recovery.py, a network that copies from its prompt in test_few_shot.py, large noise on the release in
test_base.py, and defenses that only look protective in tests/calibration/test_sham_defenses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "weaknesses"
WITHSTANDS = [
    *(("drowned", attack) for attack in ("full", "lora", "head", "layers", "bitfit")),
    ("drowned[size=500]", "full"),
    ("blurred", "full"),
    ("blurred", "full_data"),
]
BREAKS = [
    ("drowned", "reinit"),
    ("drowned", "linear_probe[solver=ridge]"),
    ("drowned", "linear_probe[solver=whitened]"),
    ("drowned", "precondition"),
    ("drowned", "precondition[by=newton]"),
    ("drowned", "precondition[by=lbfgs]"),
    ("drowned", "pipeline"),
    ("drowned", "interpolate"),
    ("drowned", "difference"),
    ("drowned[size=500]", "long"),
    ("blurred", "heal"),
]
LITTLE = 0.15
"""Accuracy that ordinary attacks stay below what they reach on the undefended model."""
MORE = 0.1
"""Accuracy by which the attack that was written for it is ahead of `full`."""

RESTORED = 0.8
"""Share of what an attack gains on the undefended model that it gains here."""


@pytest.fixture(autouse=True, scope="module")
def weaknesses(known: Callable[[Path], None]) -> None:
    known(FOLDER)


def reached(attacked: Any, defense: str, attack: str) -> float:
    record = attacked(defense, attack)
    assert record.status == "ok", record.reason
    return float(record.attacked.value)


@pytest.mark.slow
@pytest.mark.parametrize(("weakness", "attack"), WITHSTANDS)
def test_ordinary_attacks_gain_little(weakness: str, attack: str, attacked: Any) -> None:
    assert reached(attacked, weakness, attack) < reached(attacked, "none", "full") - LITTLE


@pytest.mark.slow
@pytest.mark.parametrize(("weakness", "attack"), BREAKS)
def test_the_attack_written_for_the_weakness_breaks_it(weakness: str, attack: str, attacked: Any) -> None:
    assert reached(attacked, weakness, attack) > reached(attacked, weakness, "full") + MORE
    if weakness == "drowned":  # nothing of what the model knows is lost
        own, undefended, before = (
            reached(attacked, *cell) for cell in ((weakness, attack), ("none", attack), ("none", "none"))
        )
        assert own - before > RESTORED * (undefended - before)
