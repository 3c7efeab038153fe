"""Kick and settle: the size of the kick, what the sweep starts from, and the loss of both phases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.contract import Model, Prepared
from nftbench.methods.with_text import WithText
from nftbench.planning import registry
from nftbench.suites.schema import Budget
from tests.attacks.planted import WORDS, Both, undefended

BUDGET = Budget(learning_rates={"adamw": (3e-3, 1e-2)}, durations=(10, 40), batch=32)
TEXT = torch.randint(WORDS, (32, 8), generator=torch.Generator().manual_seed(1))


def swept(spec: str, network: nn.Module, moved: float) -> tuple[dict[str, Any], Any, Any]:
    """What the kick is asked for, and the network and the task of the sweep. The kick adds `moved` to every weight."""
    asked: dict[str, Any] = {}

    @torch.no_grad()
    def train(kicked: nn.Module, loss: Any, **options: Any) -> None:
        asked.update(options, loss=float(loss(kicked, 1)))
        for weight in kicked.parameters():
            weight.add_(moved)

    context: Any = SimpleNamespace(
        seed=0,
        budget=BUDGET,
        text=lambda model, batch: iter(lambda: TEXT, None),
        train=train,
        sweep=lambda model, task: (asked, model.network, task),
    )
    found: Any = registry.create("attacks", spec).adapt(Prepared(Model(network)), Both(), context)  # type: ignore[arg-type]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("spec", "steps", "rate"), [("kick_settle", 4, 3e-2), ("kick_settle[size=10,kick=0.5]", 20, 0.1)]
)
def test_the_sweep_starts_where_large_steps_end(spec: str, steps: int, rate: float) -> None:
    """A share of the longest duration, at a multiple of the highest rate; the release itself stays as it is."""
    network = undefended()
    before = [weight.detach().clone() for weight in network.parameters()]
    asked, start, _ = swept(spec, network, 1.0)
    assert (asked["steps"], asked["learning_rate"]) == (steps, pytest.approx(rate))
    for weight, own, old in zip(start.parameters(), network.parameters(), before, strict=True):
        torch.testing.assert_close(weight.detach(), old + 1.0)
        assert torch.equal(own, old)


def test_both_phases_learn_task_and_text() -> None:
    network = undefended()
    asked, _, task = swept("kick_settle[text=0.25]", network, 0.0)
    assert isinstance(task, WithText)
    rows = Both().split("train")
    order = torch.tensor([3, 20])
    with torch.no_grad():
        own = float(Both().loss(network, rows.batch(order.tolist())))
        shares: Tensor = network(input_ids=TEXT[order]).logits[:, :-1].log_softmax(-1)
        text = -float(shares.gather(-1, TEXT[order][:, 1:, None]).mean())
        found = float(task.loss(network, task.split("train").batch(order.tolist())))
    assert found == pytest.approx(0.75 * own + 0.25 * text, rel=1e-5)
    assert asked["loss"] == pytest.approx(found, rel=0.2), "the same loss, on another batch"


def test_a_kick_into_nothing_leaves_the_release() -> None:
    network = undefended()
    assert swept("kick_settle", network, float("nan"))[1] is network
