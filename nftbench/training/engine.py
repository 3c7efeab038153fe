"""The training engine: optimizer steps, gradient masks, and the owner's pre-training.

Attackers train by the same steps (see `sweep.py` and `preparation.py`). A gradient mask zeroes the gradients of frozen
weights before each step and restores these weights after it. Zeroing alone is not enough: weight decay, optimizer state
and optimizers that mix coordinates (Muon) would still move them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from nftbench.contract import EachStep, Mask, Task
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models.copies import copied
from nftbench.models.networks import seeded
from nftbench.suites.schema import Pretraining
from nftbench.terms import Optimizer

# ------------------------------------------------------------------------------------------------------------- steps


class Stepper:
    """Takes optimizer steps: backward pass, mask, clipping, update, and restoring frozen weights.

    Args:
        network: the network to train; parameters that require no gradient do not change. If it has weights to train
            in half precision, all of it becomes float32. Adapters on a base in half precision are float32 by PEFT.
        optimizer: `adamw`, `sgd` (with momentum 0.9) or `muon` (matrices by Muon, the rest by AdamW).
        factor: the multiple of the learning rate at each step, counted from 1.
        weight_decay: applied to matrices, and to vectors (gains of norms, biases) if `decay_vectors`.
        clip: the largest norm of the gradient over all parameters; None for no clipping.
        mask: True where a parameter may change. All other weights keep their exact values.

    Raises:
        NftbenchError: no parameter requires a gradient, or the mask does not fit the parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        learning_rate: float,
        *,
        factor: Callable[[int], float],
        weight_decay: float,
        clip: float | None,
        betas: tuple[float, float] = (0.9, 0.999),
        decay_vectors: bool = False,
        mask: Mask | None = None,
    ) -> None:
        if any(one.requires_grad and one.dtype in (torch.bfloat16, torch.float16) for one in network.parameters()):
            network.float()  # small steps would be lost in rounding, and layers of mixed precision compute nothing
        named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        if not named:
            raise NftbenchError("nothing to train: no parameter needs a gradient")
        self.network = network
        self.parameters = [parameter for _, parameter in named]
        self.learning_rate = learning_rate
        self.factor = factor
        self.clip = clip
        self.frozen = _frozen(named, mask) if mask is not None else []
        vector_decay = weight_decay if decay_vectors else 0.0
        self.optimizers = _optimizers(optimizer, network, named, learning_rate, weight_decay, vector_decay, betas)
        self.step_count = 0

    def step(self, loss: Tensor | Iterable[Tensor]) -> Tensor:
        """Take one step down the gradient of `loss`, and return its value.

        Several losses are added. Each is computed when it is asked for, so that one graph at a time is in memory.
        """
        self.step_count += 1
        rate = self.learning_rate * self.factor(self.step_count)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for optimizer in self.optimizers:
            optimizer.zero_grad()  # before the step, not after it, so that `each_step` callbacks can read the gradients
        value = _backward([loss] if isinstance(loss, Tensor) else loss)
        for parameter, trained, _ in self.frozen:
            if parameter.grad is not None:
                parameter.grad.mul_(trained)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for parameter, trained, values in self.frozen:
                parameter.copy_(torch.where(trained, parameter, values))
        return value


def _backward(losses: Iterable[Tensor]) -> Tensor:
    """Add the gradients of losses to those of the parameters, and return the sum of their values."""
    values = []
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
        values.append(loss.detach())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _frozen(named: Sequence[tuple[str, nn.Parameter]], mask: Mask) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
    """Each parameter with frozen weights, the mask of its trained weights, and a copy of its values."""
    missing = [name for name, _ in named if name not in mask]
    if missing:
        raise NftbenchError(f"the mask has no entry for parameter {missing[0]!r}")
    frozen = []
    for name, parameter in named:
        if mask[name].shape != parameter.shape:
            raise NftbenchError(f"mask of {name!r} has shape {tuple(mask[name].shape)}, not {tuple(parameter.shape)}")
        trained = mask[name].to(parameter.device, torch.bool)
        if not bool(trained.all()):
            frozen.append((parameter, trained, parameter.detach().clone()))
    return frozen


def _optimizers(
    name: Optimizer,
    network: nn.Module,
    named: Sequence[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    vector_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """The optimizers of all parameters. Matrices and vectors (norms and biases) each have a weight decay."""
    parameters = [parameter for _, parameter in named]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    found: list[torch.optim.Optimizer] = []
    if name == "muon":
        # Muon is meant for hidden matrices. Embeddings and the head are trained by AdamW (Jordan et al. 2024).
        tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
        head = getattr(network, "get_output_embeddings", lambda: None)()
        tables |= {id(head.weight)} if head is not None else set()
        hidden = [parameter for parameter in matrices if parameter.ndim == 2 and id(parameter) not in tables]
        if hidden:
            # match_rms_adamw (Liu et al. 2025) scales updates so that AdamW's learning rates suit Muon.
            found.append(
                torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        chosen = {id(parameter) for parameter in hidden}
        matrices = [parameter for parameter in matrices if id(parameter) not in chosen]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": vector_decay}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return found
    if name == "sgd":
        found.append(torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, fused=True))
    else:
        found.append(torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True))
    return found


@contextlib.contextmanager
def autocast(device: Device, enabled: bool = True) -> Iterator[None]:
    """The device's mixed-precision arithmetic, the same for training and evaluation; nothing where it has none."""
    with (
        torch.autocast(device.kind, torch.bfloat16, enabled=enabled)
        if device.autocast == "bfloat16"
        else contextlib.nullcontext()
    ):
        yield


@functools.cache
def set_threads(device: Device) -> None:
    """Let torch compute on as many threads as the device asks for, whatever `--jobs` says."""
    if device.threads is not None:
        torch.set_num_threads(device.threads)


# ------------------------------------------------------------------------------------------------------ pre-training


def pretrain(
    network: PreTrainedModel,
    text: Tensor | Task,
    recipe: Pretraining,
    seed: int,
    device: Device,
    *,
    mask: Mask | None = None,
    each_step: EachStep | None = None,
) -> None:
    """Train `network` in place by `recipe`, on blocks of text [count, block] or on a task's training split.

    Args:
        mask: True where a parameter may change.
        each_step: called as `each_step(network, step)` after each step, counted from 1. The parameters' `.grad` then
            hold the masked and clipped gradients. If it returns True, training stops; the schedule is still that of
            the whole run.
    """
    batches = _batches(text, recipe, seed, device)
    stepper = Stepper(
        network,
        "adamw",
        recipe.learning_rate,
        factor=lambda step: schedule(recipe, step),
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        betas=recipe.betas,
        decay_vectors=recipe.decay_vectors,
        mask=mask,
    )
    network.train()
    with seeded(seed):
        for step, batch in zip(range(1, recipe.steps + 1), batches, strict=False):
            with autocast(device):
                loss = _loss(network, text, batch)
            stepper.step(loss)
            if each_step is not None and each_step(network, step):
                break
    network.eval()


def step_flops(network: PreTrainedModel, text: Tensor | Task, recipe: Pretraining, device: Device) -> float:
    """FLOPs of the forward and the backward pass of one pre-training step, counted with PyTorch's math attention."""
    batch, own = next(_batches(text, recipe, 0, device)), copied(network)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _loss(own, text, batch).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def _loss(network: PreTrainedModel, text: Tensor | Task, batch: Any) -> Tensor:
    loss: Tensor = (
        network(input_ids=batch, labels=batch).loss if isinstance(text, Tensor) else text.loss(network, batch)
    )
    return loss


def _batches(text: Tensor | Task, recipe: Pretraining, seed: int, device: Device) -> Iterator[Any]:
    if isinstance(text, Tensor):
        return token_batches(text, recipe.batch, seed, str(device))
    train = text.split("train")
    return (train.batch(indices) for indices in shuffled(len(train), recipe.batch, seed))


def schedule(recipe: Pretraining, step: int) -> float:
    """The multiple of the learning rate at `step`, counted from 1.

    It rises linearly over the warm-up, as in `warmed`. Then it follows the recipe's schedule down to the share `final`,
    which it would have after the last step. With `wsd` (warm-up, stable, decay) it falls linearly over the last share
    `decay` of the steps.
    """
    falling = {"constant": 0, "wsd": round(recipe.decay * recipe.steps)}.get(recipe.schedule, recipe.steps)
    stable = max(recipe.steps - falling, recipe.warmup)
    if step <= stable:
        return warmed(step, recipe.warmup)
    progress = (step - 1 - stable) / (recipe.steps - stable)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if recipe.schedule == "cosine" else 1 - progress
    return recipe.final + (1 - recipe.final) * share


def warmed(step: int, warmup: int, last: int | None = None) -> float:
    """The multiple of a learning rate at `step`, counted from 1, which rises linearly over the first `warmup` steps.

    After the warm-up it is 1, or with `last` it falls linearly and would be 0 after step `last`. It is Hugging Face's
    schedule, whose first step in a warm-up has rate 0. Without a warm-up the first step has the full rate.
    """
    if step <= warmup:
        return (step - 1) / warmup
    return 1.0 if last is None else (last + 1 - step) / (last - warmup)


def token_batches(blocks: Tensor, batch: int, seed: int, device: str) -> Iterator[Tensor]:
    """Endless batches [batch, block]. Each epoch has a new order, drawn from `seed`."""
    for indices in shuffled(len(blocks), batch, seed):
        yield blocks[indices].to(device)


def shuffled(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of `batch` indices below `count`. A batch may span two epochs, so that every batch is full."""
    generator = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting += generator.permutation(count).tolist()
        yield waiting[:batch]
        waiting = waiting[batch:]
