"""What the attacks that rewrite or re-parametrize a release do on each architecture."""

from __future__ import annotations

import copy

import pytest
import torch

from nftbench.contract import Model, Release, TaskContext
from nftbench.methods import matrices
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.suites.schema import Budget
from nftbench.testing import FirstWord, Undefended
from tests import checkpoints
from tests.attacks.planted import Reader, finite

BUDGET = Budget(
    learning_rates={"adamw": (1e-3, 1e-2)}, durations=(2,), batch=8, warmup=1, extension=0, restarts=1
).model_copy(update={"preparation_steps": 4})
SPECS = ("fuse", "inject", "inject[what=split]", "sidestep", "kick_settle", "repair")
MATRICES = {"llama": 8, "gpt2": 5, "qwen3": 8, "gpt_neox": 5, "mixtral": 7, "mamba": 5}
"""How many matrices a tiny model of one layer has, with its head: Mixtral's experts are two, all experts in one."""


class Given(TaskContext):
    """What `FirstWord` reads of its context."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def model(self) -> Model:
        return self._model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: networks.load(checkpoints.write(folder / kind, kind)) for kind in MATRICES}


@pytest.mark.parametrize("kind", MATRICES)
def test_every_matrix_is_found(kind: str, models: dict[str, Model]) -> None:
    found = matrices.of(models[kind].network)
    assert len(found) == MATRICES[kind], list(found)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", MATRICES)
def test_it_attacks_every_architecture(kind: str, spec: str, models: dict[str, Model]) -> None:
    model = models[kind]
    task = FirstWord().load(Given(model))
    plugin = registry.create("attacks", spec)
    context = Reader(seed=0, budget=BUDGET, _defense=Undefended())
    own = Model(copy.deepcopy(model.network), model.tokenizer)
    outcome = plugin.adapt(plugin.prepare(Release(own), context), task, context)
    assert finite(outcome)
    losses = {point.step: point.loss for point in outcome.curve}
    assert losses[2] != losses[0]
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        assert outcome.network(input_ids=ids).logits.shape == model.network(input_ids=ids).logits.shape
