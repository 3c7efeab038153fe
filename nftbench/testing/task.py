"""`check_task`: what a task promises, held against an untrained tiny model."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from nftbench.contract import Task
from nftbench.data.lm_eval_tasks import TextTask
from nftbench.planning import registry
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace
from nftbench.terms import SplitName
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import named, well_formed
from nftbench.testing.promises import promise, refuses, source_of, works
from nftbench.testing.tiny import ARCHITECTURES, task_context, temporary_workspace, tiny_suite


def check_task(
    task: Task | type[Task] | ModuleType | str | Path,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    data: Path | None = None,
    **changes: Any,
) -> None:
    """Load the task for a tiny untrained model of each architecture and hold it to its protocol.

    Args:
        task: an object, a class, a module, a spec, or a file or folder as `--plugin` takes it. A YAML file is a text
            task.
        data: the folder of local data (`--data`).
        changes: fields of the tiny suite that the task is loaded for.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    with _created(task) as plugin:
        source = plugin.path if isinstance(plugin, TextTask) else source_of(plugin)
        with works("fingerprint(data) ends without an error", source):
            found = plugin.fingerprint(data)
        promise(isinstance(found, str), "fingerprint(data) returns a string", f"it returns {type(found).__name__}")
        for architecture in architectures:
            with temporary_workspace(tiny_suite(architecture, **changes), data) as workspace:
                _check_on(plugin, workspace, source)


def _check_on(plugin: Task, workspace: Workspace, source: Path | None) -> None:
    model = Owner(workspace, 0).build()
    with works("it can be loaded", source):
        loaded, again = (plugin.load(task_context(workspace, model)) for _ in range(2))
    trained: tuple[SplitName, ...] = ("train", "validation", loaded.choosing, "test")
    names: tuple[SplitName, ...] = trained if plugin.trainable else ("test",)
    with works("it has all its splits", source):
        empty = [name for name in dict.fromkeys(names) if len(loaded.split(name)) == 0]
    promise(not empty, "every split has documents", f"none in {', '.join(empty)}", essential=True)
    if plugin.trainable:
        _check_loss(loaded, model.network, source)
    else:
        promise(
            refuses(partial(loaded.split, "train")),
            "a task that is not trainable has no train split",
            "raise NftbenchError in split, or leave `trainable` at True",
        )
    for name in names[1:] or names:
        _check_measurement(loaded, again, model.network, name, source)


@contextlib.contextmanager
def _created(task: object) -> Iterator[Task]:
    if isinstance(task, str | Path):
        with named("tasks", task) as spec:
            path = registry.find("tasks", spec.name).text_file
            if path is not None:
                with works("its parameters are those of a text task"):
                    text = TypeAdapter(TextTask).validate_python({"path": path, **dict(spec.parameters)})
                yield text
                return
    with well_formed("tasks", task) as plugin:
        yield plugin


def _check_loss(task: Task, network: nn.Module, source: Path | None) -> None:
    network = copy.deepcopy(network).train()
    with works("loss ends without an error", source):
        split = task.split("train")
        with keeps_random_state("loss"):
            loss = task.loss(network, split.batch(range(min(4, len(split)))))
    promise(
        loss.ndim == 0 and bool(torch.isfinite(loss)),
        "loss is one finite number",
        f"it is {loss.item():g}" if loss.ndim == 0 else f"it has the shape {tuple(loss.shape)}",
        essential=True,
    )
    promise(
        loss.requires_grad,
        "loss can be differentiated",
        "compute it from what the network returns, without no_grad, detach or item",
        essential=True,
    )
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    promise(all(bool(torch.isfinite(gradient).all()) for gradient in found), "the loss's gradients are finite")
    promise(any(bool(gradient.any()) for gradient in found), "the loss has a gradient", "it is zero for every weight")


def _check_measurement(task: Task, again: Task, network: nn.Module, name: SplitName, source: Path | None) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with works("evaluate ends without an error", source):
        with keeps_random_state("evaluate"):
            first = task.evaluate(network, task.split(name))
        twice = task.evaluate(network, task.split(name))
        loaded = again.evaluate(network, again.split(name))
    promise(
        identical(before, network.state_dict()), "evaluate leaves the network as it is", "change a copy, or nothing"
    )
    promise(first == twice, f"evaluating {name} twice gives the same", f"{first.value:g}, then {twice.value:g}")
    promise(
        first == loaded,
        f"loading twice gives the same {name} split",
        f"it scores {first.value:g}, then {loaded.value:g}: draw documents by context.seed",
    )
    promise(
        math.isfinite(first.value) and first.stderr >= 0,
        f"the {name} score and its error are finite",
        f"{first.value} with error {first.stderr}",
    )
    promise(first.count > 0, f"the {name} score counts its documents", "count is 0")
    promise(
        math.isfinite(first.floor),
        "the floor is a number",
        f"it is {first.floor}: give what chance scores",
        essential=True,
    )
    if first.higher_is_better:
        promise(
            first.floor < 1,
            "a score above the floor is possible",
            f"the floor is {first.floor:g}; give what chance scores",
        )
    # Classes need not be equally frequent, hence some slack.
    ahead = (first.value - first.floor) * (1 if first.higher_is_better else -1)
    slack = max(5 * first.stderr, 0.2 * abs(first.floor))
    promise(
        ahead <= slack,
        "an untrained model does not beat the floor",
        f"{first.value:g} against {first.floor:g}: give as floor what a model that knows nothing scores",
    )
