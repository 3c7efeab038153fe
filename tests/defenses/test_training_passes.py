"""How much a defense says that it trains, against the FLOPs and the memory of what it does on a tiny model."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from nftbench.contract import Defense
from nftbench.methods import tuning
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.harmful_pairs import HarmfulPairs, Pair, cross_entropy
from nftbench.planning import facts, registry
from nftbench.records.spec import Spec
from nftbench.running import estimate
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite
from nftbench.testing.tiny import temporary_workspace

MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPECS = (
    "booster[harmful=toy_topic,steps=6,trained=full]",
    "booster[harmful=toy_topic,steps=6,rank=1]",
    "booster[harmful=toy_topic,steps=6,strength=0,trained=full]",
    "clamp[harmful=toy_topic,steps=4,batch=8]",
    "clamp[harmful=toy_topic,steps=4,batch=8,inner_steps=1]",
    "condition_number[harmful=toy_topic,epochs=2,batch=8]",
    "condition_number[harmful=toy_topic,epochs=2,batch=8,blocks=4]",
    "condition_number[harmful=toy_topic,primary=toy_topic,epochs=2,batch=8]",
    "continued[steps=4]",
    "dlr_lock[depth=2,module_steps=40,joint_steps=0]",
    "dlr_lock[depth=2,module_steps=0,joint_steps=40]",
    "lox[steps=6]",
    "lox[harmful=toy_topic,steps=6]",
    "pmp[discovery_steps=6,iou=1]",
    "repnoise[harmful=toy_topic,steps=6]",
    "seam[harmful=toy_topic,steps=6]",
    "sophon[harmful=toy_topic,steps=3,batch=20,inner_steps=5,reinforce_steps=2,learning_rate=1e-9]",
    "sophon[harmful=toy_topic,steps=3,batch=20,reinforce_steps=2,learning_rate=1e-9,alpha=0]",
    "tar[harmful=toy_topic,steps=6,inner_steps=16,mapping_steps=6]",
    "tar[harmful=toy_topic,steps=6,mapping_steps=6,strength=0]",
    "trap2[task=toy_topic,steps=6,update=full]",
    "trap2[task=toy_topic,steps=6,rank=1]",
    "trap2[task=toy_topic,steps=6,update=full,strength=0]",
    "vaccine[steps=6,trained=full]",
    "vaccine[steps=6,rank=1]",
    "vaccine[steps=6,trained=full,rho=0]",
)
OWN_LOSS = {"booster", "condition_number", "lox", "trap2"}
"""Defenses that read documents by the task's own loss, and not as pairs."""
TRAINS_NO_MORE = {
    *("none", "noise", "prune", "quantize", "reinit", "specdef", "interpolate", "early_stop", "checkpoint"),
    *("twin", "narrow", "smaller", "short", "random_mask"),
}
"""Defenses that do not train, or take no more than the recipe's own run."""


class Flops(TorchDispatchMode):
    """Counts the FLOPs of all products of matrices. Those in float64 count twice, which they take on a CPU."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            first = out if isinstance(out, Tensor) else out[0]
            flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.total += flops * (2 if first.dtype == torch.float64 else 1)
        return out


@pytest.fixture(scope="module")
def here() -> Iterator[Workspace]:
    corpus = {"sentences": 1500, "heldout_blocks": 128}  # SOPHON judges by 64 blocks
    with temporary_workspace(tiny_suite("llama", model=MODEL, corpus=corpus)) as workspace:
        yield workspace


def protecting(workspace: Workspace, spec: str) -> float:
    """The FLOPs of `protect`, without those of the recipe's own run."""
    plugin = registry.create("defenses", spec)
    owner = Owner(workspace, 0, plugin.told())
    model = owner.build() if plugin.stage == "pretrain" else make_base(workspace, 0)
    with Flops() as found:
        plugin.protect(model, owner)
    if plugin.stage == "posttrain":
        return found.total
    with Flops() as recipe:
        owner.pretrain(owner.build())
    return found.total - recipe.total


@dataclass(frozen=True)
class PassFlops:
    """The FLOPs of one training pass."""

    block: float
    document: float
    """Read by the task's own loss, which takes the head near the answers alone."""
    pair: float
    """A document as `HarmfulPairs` reads it."""


@pytest.fixture(scope="module")
def each(here: Workspace) -> PassFlops:
    """Means over batches, which are as wide as their longest document."""
    owner = Owner(here, 0, ("toy_topic",))
    network, task = make_base(here, 0).network, owner.task("toy_topic")
    with Flops() as blocks:
        text_loss(network, next(text_batches(owner, 8, "cpu"))).backward()
    with Flops() as documents:
        for rows in itertools.islice(tuning.document_batches(task, 8, 0), 20):
            task.loss(network, rows).backward()
    with Flops() as pairs:
        for pair in itertools.islice(HarmfulPairs.of(task).batches(8, 0, "cpu"), 20):
            cross_entropy(network(input_ids=pair.harmful.inputs).logits, pair.harmful).backward()
    return PassFlops(blocks.total / 8, documents.total / 160, pairs.total / 160)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_a_defense_trains_as_much_as_it_says(spec: str, here: Workspace, each: PassFlops) -> None:
    trained = facts.training_passes(spec, estimate.with_vocabulary(here.suite))
    document = each.document if Spec.parse(spec).name in OWN_LOSS else each.pair
    said = trained.blocks * each.block + trained.documents * document
    assert said == pytest.approx(protecting(here, spec), rel=0.3)


AT_ONCE = (
    "booster[harmful=toy_topic,steps=2,trained=full]",
    "booster[harmful=toy_topic,steps=2]",
    "booster[harmful=toy_topic,steps=2,strength=0,trained=full]",
    "clamp[harmful=toy_topic,steps=2]",
    "clamp[harmful=toy_topic,steps=2,inner_steps=1]",
    "condition_number[harmful=toy_topic,epochs=1,batch=16]",
    "condition_number[harmful=toy_topic,epochs=1,batch=16,blocks=4]",
    "condition_number[harmful=toy_topic,primary=toy_topic,epochs=1,batch=16,blocks=2]",
    "continued[steps=2]",
    "dlr_lock[module_steps=2,joint_steps=0]",
    "dlr_lock[module_steps=0,joint_steps=2]",
    "dlr_lock[depth=2,module_steps=0,joint_steps=2]",
    "lox[steps=2]",
    "lox[harmful=toy_topic,steps=2,batch=4]",
    "repnoise[harmful=toy_topic,steps=2]",
    "repnoise[harmful=toy_topic,steps=2,batch=32]",
    "seam[harmful=toy_topic,steps=2]",
    "sophon[harmful=toy_topic,steps=2,inner_steps=2,reinforce_steps=2]",
    "sophon[harmful=toy_topic,steps=2,batch=4,inner_steps=2,reinforce_steps=2]",
    "tar[harmful=toy_topic,steps=2,inner_steps=16,mapping_steps=2]",
    "tar[harmful=toy_topic,steps=2,mapping_steps=2,strength=0]",
    "trap2[task=toy_topic,steps=2,update=full]",
    "trap2[task=toy_topic,steps=2,batch=16,update=full,strength=0]",
    "trap2[task=toy_topic,steps=2,batch=16]",
    "vaccine[steps=2,trained=full]",
    "vaccine[steps=2]",
)
"""Two steps each. No batch is larger than the tiny suite's tasks. A given base takes no defense that pre-trains."""


class Memory(TorchDispatchMode):
    """The peak of the bytes in memory, of those allocated while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._held:
                self._now += storage.nbytes()
                self._held.add(storage._cdata)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return out

    def _freed(self, storage: int, size: int) -> None:
        self._held.discard(storage)
        self._now -= size


@pytest.fixture(scope="module")
def wide() -> Iterator[Workspace]:
    """So wide that weights and activations both count."""
    model = {**MODEL, "hidden_size": 64, "intermediate_size": 168}
    corpus = {"sentences": 1500, "heldout_blocks": 128, "block": 64}
    with temporary_workspace(tiny_suite("llama", model=model, corpus=corpus)) as workspace:
        yield workspace


@dataclass(frozen=True)
class PassBytes:
    """What one training pass keeps in memory, its gradients aside. The sequences are those of `PassFlops`."""

    block: float
    document: float
    pair: float


@pytest.fixture(scope="module")
def kept(wide: Workspace) -> PassBytes:
    owner = Owner(wide, 0, ("toy_topic",))
    network, task = make_base(wide, 0).network, owner.task("toy_topic")
    batches = tuning.document_batches(task, 8, 0), HarmfulPairs.of(task).batches(8, 0, "cpu")
    documents, pairs = (list(itertools.islice(found, 20)) for found in batches)
    text = next(text_batches(owner, 8, "cpu"))

    def pair_loss(pair: Pair) -> Tensor:
        return cross_entropy(network(input_ids=pair.harmful.inputs).logits, pair.harmful)

    return PassBytes(
        peak(lambda: text_loss(network, text)) / 8,
        sum(peak(functools.partial(task.loss, network, rows)) for rows in documents) / 160,
        sum(peak(functools.partial(pair_loss, pair)) for pair in pairs) / 160,
    )


def peak(act: Callable[[], Any]) -> int:
    """The most bytes that are in memory at one time, of those made meanwhile."""
    with Memory() as found:
        act()
    return found.peak


@pytest.mark.slow
@pytest.mark.parametrize("spec", AT_ONCE)
def test_a_defense_takes_the_memory_that_it_says(spec: str, wide: Workspace, kept: PassBytes) -> None:
    """Within a factor of two, without the base, which is there before."""
    plugin, model = registry.create("defenses", spec), make_base(wide, 0)
    trained = facts.training_passes(spec, estimate.with_vocabulary(wide.suite))
    document = kept.document if Spec.parse(spec).name in OWN_LOSS else kept.pair
    said = 4 * (trained.copies - 1) * model.network.num_parameters()
    said += trained.blocks_at_once * kept.block + trained.documents_at_once * document
    found = peak(lambda: plugin.protect(model, Owner(wide, 0, plugin.told())))
    assert found / 2 < said < 2 * found


def test_every_defense_that_trains_says_so() -> None:
    """A new one has to be in one of the two lists."""
    tried = {Spec.parse(text).name for text in SPECS}
    assert tried.isdisjoint(TRAINS_NO_MORE)
    assert tried | TRAINS_NO_MORE == registry.available("defenses").keys()
    plugins = {name: registry.imported(registry.find("defenses", name)) for name in tried}
    assert all(plugin.training_passes is not Defense.training_passes for plugin in plugins.values())
    on_given_bases = {name for name, plugin in plugins.items() if plugin.stage == "posttrain"}
    assert {Spec.parse(text).name for text in AT_ONCE} == on_given_bases
