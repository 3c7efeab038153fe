"""Every plugin that nftbench ships keeps the contract of nftbench.testing, and plugins that break it are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from nftbench import Attack, Defense, Measurement, Model, Outcome, Prepared, Protected, Secret
from nftbench.errors import NftbenchError
from nftbench.testing import BrokenPromiseError, check_attack, check_defense, check_task, check_yardstick
from nftbench.testing.tiny import ARCHITECTURES
from tests.few_steps import specs

WriteFile = Callable[[str, str], Path]

ALLOWANCES = {
    "full[clip=false,warmup=100,decay=true,average=true]": 1.5,
    "long[times=2]": 2.0,
    "difference": 1.8,
    "difference[to=sibling]": 1.9,
    "interpolate": 1.3,
    "extrapolate": 1.3,
    "kick_settle": 1.1,
    "repair": 1.3,
    # two sweeps, and a run of the longest duration for each preparation and for none
    "pipeline[preparations=heal[steps=3]+redistill[steps=3]+rebalance]": 2.5,
}
"""How many times the suite's steps an attack openly takes."""
NEED_OTHERS = ("ag_news", "blimp", "sst2", "trec", "diabetes", "digits_pair", "house_price", "mnist_pair")
"""Tasks that need local data or another kind of model."""
EACH_ARCHITECTURE = pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=() if name == "gpt2" else pytest.mark.slow) for name in ARCHITECTURES]
)


@EACH_ARCHITECTURE
@pytest.mark.parametrize("spec", specs("defenses"))
def test_every_defense_keeps_the_contract(spec: str, architecture: str, cache: Path) -> None:
    check_defense(spec, architectures=[architecture])


@EACH_ARCHITECTURE
@pytest.mark.parametrize("spec", specs("attacks"))
def test_every_attack_keeps_the_contract(spec: str, architecture: str, cache: Path) -> None:
    check_attack(spec, architectures=[architecture], allowance=ALLOWANCES.get(spec, 1.0))


@pytest.mark.parametrize(
    ("yardstick", "defense"),
    [
        ("cost[rounds=1,batch=2,blocks=2]", "dlr_lock[depth=2,module_steps=2,joint_steps=2]"),
        ("scale_loss", "trap2[task=toy_topic,steps=3]"),
        ("early_bird[steps=6]", "pmp[discovery_steps=3]"),
        ("mask_gradients", "pmp[discovery_steps=3]"),
        ("landscape", "random_mask"),
    ],
)
def test_yardsticks_keep_the_contract(yardstick: str, defense: str, cache: Path) -> None:
    check_yardstick(yardstick, defense, architectures=["gpt2"])


@pytest.mark.parametrize("name", [name for name in specs("tasks") if name not in NEED_OTHERS])
def test_every_task_keeps_the_contract(name: str, cache: Path) -> None:
    check_task(name)


def test_the_checkpoint_defense_keeps_the_contract(cache: Path, tmp_path: Path) -> None:
    from nftbench.models import networks
    from nftbench.running.owner import Owner
    from nftbench.testing import temporary_workspace, tiny_suite

    with temporary_workspace(tiny_suite()) as workspace:
        networks.save(Owner(workspace, 0).build(), tmp_path / "given")
    check_defense(f"checkpoint[path={tmp_path / 'given'}]", architectures=["gpt2"])


# ------------------------------------------------------------------------------------------------ bad defenses are seen


@dataclass(frozen=True)
class Plain(Defense):
    stage: ClassVar[Any] = "posttrain"

    def protect(self, model: Model, context: Any) -> Protected:
        return Protected(model)


@dataclass(frozen=True)
class GlobalRandom(Plain):
    def protect(self, model: Model, context: Any) -> Protected:
        weight = next(model.network.parameters())
        weight.data.add_(torch.randn(weight.shape))
        return Protected(model)


@dataclass(frozen=True)
class Unrepeatable(Plain):
    def protect(self, model: Model, context: Any) -> Protected:
        import os

        next(model.network.parameters()).data.mul_(1 + int.from_bytes(os.urandom(2), "big") / 1e6)
        return Protected(model)


@dataclass(frozen=True)
class WrongShape(Plain):
    keeps_secret: ClassVar[bool] = True

    def protect(self, model: Model, context: Any) -> Protected:
        return Protected(model, Secret({name: torch.ones(3) > 0 for name, _ in model.network.named_parameters()}))


@dataclass(frozen=True)
class Half(Plain):
    keeps_secret: ClassVar[bool] = True

    def protect(self, model: Model, context: Any) -> Protected:
        return Protected(model, Secret({}))


@dataclass(frozen=True)
class Promises(Plain):
    keeps_secret: ClassVar[bool] = True


@dataclass(frozen=True)
class LeavesABuffer(Plain):
    def protect(self, model: Model, context: Any) -> Protected:
        model.network.register_buffer("kept", torch.ones(3))
        return Protected(model)


@dataclass(frozen=True)
class ListParameter(Plain):
    values: Any = None


@dataclass(frozen=True)
class OtherType(Plain):
    def protect(self, model: Model, context: Any) -> Any:
        return model


BAD_DEFENSES = [
    (GlobalRandom(), "leaves the global random numbers alone: those of torch moved"),
    (Unrepeatable(), "the same seed gives the same release"),
    (Promises(), "the class says keeps_secret = True, but protect returned no secret"),
    (WrongShape(), "has the parameter's shape"),
    (Half(), "one entry for each parameter"),
    (LeavesABuffer(), "the model's tensors and no others: kept:"),
    (ListParameter([1]), r"each parameter is a string, .*: 'values' is \[1\]"),
    (OtherType(), "protect returns Protected: it returned Model"),
]


@pytest.mark.parametrize(("defense", "promise"), BAD_DEFENSES)
def test_a_defense_that_breaks_its_promise_is_seen(defense: Defense, promise: str, cache: Path) -> None:
    with pytest.raises(BrokenPromiseError, match=promise):
        check_defense(defense, architectures=["gpt2"])


def test_an_honest_instance_passes(cache: Path) -> None:
    check_defense(Plain())


# ------------------------------------------------------------------------------------------------- bad attacks are seen


@dataclass(frozen=True)
class Sweeps(Attack):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        found: Outcome = context.sweep(prepared.model, task)
        return found


@dataclass(frozen=True)
class Spends(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        return super().adapt(prepared, task, _Longer(context))


@dataclass(frozen=True)
class _Longer:
    context: Any

    def sweep(self, model: Model, task: Any) -> Outcome:
        found: Outcome = self.context.sweep(model, task, durations=(2, 50))
        return found


@dataclass(frozen=True)
class Uncounted(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        found = super().adapt(prepared, task, context)
        optimizer = torch.optim.AdamW(found.network.parameters(), lr=0.0, weight_decay=0.0)
        for _ in range(found.cost.steps):
            optimizer.step()
        return found


@dataclass(frozen=True)
class Spoils(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        found = super().adapt(prepared, task, context)
        with torch.no_grad():
            next(prepared.model.network.parameters()).zero_()
        return found


@dataclass(frozen=True)
class Peeks(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        task.split("test")
        return super().adapt(prepared, task, context)


@dataclass(frozen=True)
class Idles(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        found: Outcome = context.unchanged(prepared.model, task)
        return found


@dataclass(frozen=True)
class Freezes(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        nothing = {name: weight.isnan() for name, weight in prepared.model.network.named_parameters()}
        found: Outcome = context.sweep(prepared.model, task, gradient_mask=nothing)
        return found


@dataclass(frozen=True)
class Trains(Sweeps):
    trains: ClassVar[bool] = False


@dataclass(frozen=True)
class Explodes(Sweeps):
    def adapt(self, prepared: Prepared, task: Any, context: Any) -> Outcome:
        found = super().adapt(prepared, task, context)
        with torch.no_grad():
            next(found.network.parameters()).fill_(float("inf"))
        return found


BAD_ATTACKS = [
    (Spends(), "keeps to the budget"),
    (Uncounted(), "the cost counts every step"),
    (Spoils(), "leaves the prepared model as it is"),
    (Peeks(), "the splits selection and test are for the referee alone"),
    (Idles(), "trains is True, and adapt took 0 steps"),
    (Freezes(), "training changes the undefended model"),
    (Trains(), "trains is False"),
    (Explodes(), "the attacked weights are finite"),
]


@pytest.mark.parametrize(("attack", "promise"), BAD_ATTACKS)
def test_an_attack_that_breaks_its_promise_is_seen(attack: Attack, promise: str, cache: Path) -> None:
    with pytest.raises(BrokenPromiseError, match=promise):
        check_attack(attack, architectures=["gpt2"])


def test_a_longer_attack_passes_with_an_allowance(cache: Path) -> None:
    check_attack(Spends(), architectures=["gpt2"], allowance=12.5)


# --------------------------------------------------------------------------------------------------- bad tasks are seen


def changed(**methods: Any) -> Any:
    """The task `FirstWord` with some methods replaced."""
    from nftbench.testing import FirstWord

    @dataclass(frozen=True)
    class Changed(FirstWord):
        pass

    for name, method in methods.items():
        setattr(Changed, name, method)
    return Changed()


def off_by(**fields: Any) -> Callable[..., Measurement]:
    from dataclasses import replace

    from nftbench.testing import FirstWord

    def evaluate(self: Any, network: nn.Module, split: Any) -> Measurement:
        return replace(FirstWord.evaluate(self, network, split), **fields)

    return evaluate


def jitter(self: Any, network: nn.Module, split: Any) -> Measurement:
    import os

    return off_by(value=int.from_bytes(os.urandom(4), "big") / 2**33)(self, network, split)


def spoils(self: Any, network: nn.Module, split: Any) -> Measurement:
    found = off_by()(self, network, split)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    return found


BAD_TASKS = [
    (changed(loss=lambda self, network, batch: torch.tensor(1.0)), "loss can be differentiated"),
    (changed(loss=lambda self, network, batch: network(input_ids=batch[0]).logits), "loss is one finite number"),
    (changed(loss=lambda self, network, batch: network(input_ids=batch[0]).logits.sum() * float("nan")), "finite"),
    (
        changed(loss=lambda self, network, batch: network(input_ids=batch[0]).logits.sum() * 0),
        "the loss has a gradient",
    ),
    (changed(evaluate=jitter), "twice gives the same"),
    (changed(evaluate=spoils), "evaluate leaves the network as it is"),
    (changed(evaluate=off_by(floor=1.0)), "a score above the floor is possible"),
    (changed(evaluate=off_by(floor=0.05)), "an untrained model does not beat the floor"),
    (changed(evaluate=off_by(floor=float("nan"))), "the floor is a number"),
    (changed(evaluate=off_by(count=0)), "counts its documents"),
    (changed(trainable=False), "a task that is not trainable has no train split"),
]


@pytest.mark.parametrize(("task", "promise"), BAD_TASKS)
def test_a_task_that_breaks_its_promise_is_seen(task: Any, promise: str, cache: Path) -> None:
    with pytest.raises(BrokenPromiseError, match=promise):
        check_task(task, architectures=["gpt2"])


def test_the_built_in_task_passes(cache: Path) -> None:
    check_task(changed())


def test_a_plugin_file_in_another_repository(plugin: WriteFile, cache: Path) -> None:
    """As its author writes it: one file, one line of test."""
    plugin(
        "halved",
        '"""Every weight halved."""\n\n'
        "@dataclass(frozen=True)\nclass Halved(Defense):\n"
        "    stage: ClassVar = 'posttrain'\n    factor: float = 0.5\n\n"
        "    @torch.no_grad()\n    def protect(self, model, context):\n"
        "        for weight in model.network.parameters():\n            weight.mul_(self.factor)\n"
        "        return Protected(model)\n",
    )
    check_defense("halved[factor=0.25]")
    with pytest.raises(NftbenchError, match="did you mean 'halved'"):
        check_defense("halfed")
