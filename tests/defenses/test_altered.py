"""The trivial changes of a checkpoint: each changes what it says, by as much as it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nftbench import Model
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import registry
from tests import checkpoints


@pytest.fixture
def twin(tmp_path: Path) -> Model:
    return networks.load(checkpoints.write(tmp_path / "twin"))


@torch.no_grad()
def altered(tmp_path: Path, change: str, dose: float, seed: int = 0) -> Any:
    plugin = registry.create("defenses", f"altered[path={tmp_path / 'twin'},change={change},dose={dose}]")
    given: Any = SimpleNamespace(network=torch.nn.Linear(1, 1).requires_grad_(False))
    given.network.device = "cpu"
    return plugin.protect(given, SimpleNamespace(seed=seed)).release.network


def shares(twin: Model, changed: Any) -> tuple[float, float]:
    """The shares of the weights in matrices that are another number than before, and that are zero."""
    pairs = [
        (twin.network.get_parameter(name), weight) for name, weight in changed.named_parameters() if weight.ndim > 1
    ]
    count = sum(weight.numel() for _, weight in pairs)
    differ = sum(int((before != after).sum()) for before, after in pairs)
    return differ / count, sum(int((after == 0).sum()) for _, after in pairs) / count


def test_noise_is_relative_to_the_size_of_the_weights(twin: Model, tmp_path: Path) -> None:
    changed = altered(tmp_path, "noise", 0.2)
    before, after = (one.get_input_embeddings().weight.detach() for one in (twin.network, changed))
    assert (after - before).std() / before.square().mean().sqrt() == pytest.approx(0.2, rel=0.05)
    other = altered(tmp_path, "noise", 0.2, seed=1).get_input_embeddings().weight.detach()
    assert not torch.equal(after, other)


def test_pruning_and_resetting_change_this_share(twin: Model, tmp_path: Path) -> None:
    assert shares(twin, altered(tmp_path, "prune", 0.3))[1] == pytest.approx(0.3, abs=0.001)
    assert shares(twin, altered(tmp_path, "reinit", 0.3, seed=1))[0] == pytest.approx(0.3, abs=0.02)


def test_quantising_leaves_so_many_values_in_a_channel(twin: Model, tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"  # a Conv1D, whose channels are columns
    before, after = (one.get_parameter(name) for one in (twin.network, altered(tmp_path, "quantize", 3)))
    assert max(len(column.unique()) for column in after.T) <= 7
    step = before.abs().amax(0) / 3
    assert bool(((after - before).abs() <= step / 2 * 1.001).all())


@pytest.mark.parametrize(("change", "dose"), [("quantize", 1), ("quantize", 3.5), ("prune", 1.5), ("noise", 0)])
def test_an_impossible_dose_is_refused(change: str, dose: float) -> None:
    with pytest.raises(NftbenchError, match="dose of "):
        registry.create("defenses", f"altered[path=twin,change={change},dose={dose}]")
