"""`check_task`: what a task promises, held against an untrained tiny model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nftbench.contract import Task
from nftbench.data.lm_eval_tasks import TextTask
from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.running.owner import Owner
from nftbench.terms import SplitName
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise, refuses
from nftbench.testing.tiny import ARCHITECTURES, task_context, temporary_workspace, tiny_suite


def check_task(
    task: Task | str | Path,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    data: Path | None = None,
    **changes: Any,
) -> None:
    """Load the task for a tiny untrained model of each architecture and hold it to its protocol.

    Args:
        task: an instance, a spec, the name of a text task, or the path of its YAML file.
        data: the folder of local data (`--data`).
        changes: fields of the tiny suite that the task is loaded for.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin = _created(task)
    promise(isinstance(plugin.fingerprint(data), str), "fingerprint(data) returns a string")
    for architecture in architectures:
        with temporary_workspace(tiny_suite(architecture, **changes), data) as workspace:
            model = Owner(workspace, 0).build()
            loaded, again = (plugin.load(task_context(workspace, model)) for _ in range(2))
            trained: tuple[SplitName, ...] = ("train", "validation", loaded.choosing, "test")
            names: tuple[SplitName, ...] = trained if plugin.trainable else ("test",)
            for name in names:
                promise(len(loaded.split(name)) > 0, f"the {name} split has documents")
            if plugin.trainable:
                _check_loss(loaded, model.network)
            else:
                promise(refuses(partial(loaded.split, "train")), "a task that is not trainable has no train split")
            for name in names[1:] or names:
                _check_measurement(loaded, again, model.network, name)


def _created(task: Task | str | Path) -> Task:
    if isinstance(task, Path):
        return TextTask(task)
    if isinstance(task, str):
        found = registry.find("tasks", Spec.parse(task).name)
        if found.path is not None and found.path.suffix == ".yaml":
            return TextTask(found.path)
    plugin: Task = well_formed("tasks", task)
    return plugin


def _check_loss(task: Task, network: nn.Module) -> None:
    network = copy.deepcopy(network).train()
    split = task.split("train")
    with keeps_random_state("loss"):
        loss = task.loss(network, split.batch(range(min(4, len(split)))))
    promise(loss.ndim == 0 and bool(torch.isfinite(loss)), "loss is one finite number")
    promise(loss.requires_grad, "loss can be differentiated")
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    promise(all(bool(torch.isfinite(gradient).all()) for gradient in found), "the loss's gradients are finite")
    promise(any(bool(gradient.any()) for gradient in found), "the loss has a gradient")


def _check_measurement(task: Task, again: Task, network: nn.Module, name: SplitName) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with keeps_random_state("evaluate"):
        first = task.evaluate(network, task.split(name))
    promise(identical(before, network.state_dict()), "evaluate leaves the network as it is")
    promise(first == task.evaluate(network, task.split(name)), f"evaluating {name} twice gives the same")
    promise(first == again.evaluate(network, again.split(name)), f"loading twice gives the same {name} split")
    promise(math.isfinite(first.value) and first.stderr >= 0, f"the {name} score and its error are finite")
    promise(first.count > 0, f"the {name} score counts its documents")
    promise(math.isfinite(first.floor), "the floor is a number")
    if first.higher_is_better:
        promise(first.floor < 1, f"a score above the floor is possible: {first.floor:g}")
    # Classes need not be equally frequent, hence some slack.
    ahead = (first.value - first.floor) * (1 if first.higher_is_better else -1)
    slack = max(5 * first.stderr, 0.2 * abs(first.floor))
    promise(ahead <= slack, f"an untrained model does not beat the floor: {first.value:g} against {first.floor:g}")
