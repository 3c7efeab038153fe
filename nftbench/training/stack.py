"""Several networks trained at once, as one network whose trained weights have a further dimension.

A small network leaves a GPU waiting for its next kernel. In a stack each kernel serves all networks: `torch.func.vmap`
computes their losses from one call of the network. Weights that are not trained, such as those beneath LoRA, are there
once. The optimizer is elementwise, so that each network has a learning rate of its own. Gradients are clipped for each
network. The numbers are those of training one by one, up to the order of summation.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as trees
from transformers import PreTrainedModel

from nftbench.contract import Mask
from nftbench.terms import Optimizer

Loss = Callable[[nn.Module, Any], Tensor]
"""The loss of a network on a batch, a scalar."""

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""torch.optim.AdamW's own, which an attack's steps use."""
MOMENTUM = 0.9
ELEMENTWISE: tuple[Optimizer, ...] = ("adamw", "sgd")
"""The optimizers that treat each weight alone. Muon treats a matrix as a whole."""
MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest relative distance between a stack's first losses and gradients and those of its networks alone, by the
precision of the arithmetic. Rounding stays far below it."""
WARM_UP = 3
"""Steps on batches of one shape before such a step is recorded as a CUDA graph."""
MOST_GRAPHS = 8
"""Each graph holds memory of its own. Batches of further shapes are trained on without one."""


class CannotStackError(Exception):
    """These networks cannot be trained at once; the text says why."""


class Stack:
    """Networks of one architecture and the optimizer of their trained weights.

    Args:
        networks: the networks, in training mode. The first one lends its layers to all; the others are only read. One
            network may stand for several.
        loss: must compute the same function whenever it is called.
        rates: the learning rates [steps, networks].
        weight_decay: applied to matrices; vectors (gains of norms, biases) have none.
        clip: the largest norm of a network's gradient; None for no clipping.
        mask: True where a parameter may change. All other weights keep their exact values.

    Raises:
        CannotStackError: the optimizer is not elementwise, a network has hooks, or the networks differ in more than
            the values of their trained weights.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        loss: Loss,
        optimizer: Optimizer,
        rates: Tensor,
        *,
        weight_decay: float,
        clip: float | None,
        mask: Mask | None = None,
    ) -> None:
        if optimizer not in ELEMENTWISE:
            raise CannotStackError(f"{optimizer} does not treat each weight alone")
        self.layers, self.loss, self.optimizer, self.clip = networks[0], loss, optimizer, clip
        self.shapes = {name: weight.shape for name, weight in _trained(self.layers).items()}
        rows = {network: self._row(network) for network in dict.fromkeys(networks)}
        self._alone = tuple(networks)
        self.weights = torch.stack([rows[network] for network in networks]).requires_grad_()
        self.rates = rates.to(self.weights)
        self.first = torch.zeros_like(self.weights, requires_grad=False)
        self.second = torch.zeros_like(self.weights, requires_grad=False) if optimizer == "adamw" else None
        self.count = torch.zeros((), dtype=torch.int64, device=self.weights.device)
        self.decay = self._each(lambda name, shape: torch.full(shape, weight_decay * (len(shape) > 1)))
        self.free = None if mask is None else self._each(lambda name, _: mask[name]).bool()
        self.start = None if mask is None else self.weights.detach().clone()
        self._wrapped = _Loss(self.layers, loss)
        self._configs = {id(one): one for one in map(_config, self.layers.modules()) if one is not None}.values()
        self._graphs = Graphs()

    # ----------------------------------------------------------------------------------------------------- training

    def step(self, batches: Sequence[Any]) -> Tensor:
        """One optimizer step of every network; the losses [networks] before it.

        `batches` is one batch for all networks, or a batch for each.

        Raises:
            CannotStackError: the batches differ in shape, or memory runs out.
        """
        leaves, structure = self._leaves(batches)

        def action(inputs: Sequence[Tensor]) -> Tensor:
            losses = self._losses(self.weights, inputs, structure)
            (gradients,) = torch.autograd.grad(losses.sum(), self.weights)
            self._update(gradients)
            return losses.detach()

        try:
            return self._graphs.run(structure, leaves, action)
        except torch.OutOfMemoryError as error:
            raise CannotStackError(f"no memory for {len(self.weights)} networks at once") from error

    def check(self, batches: Sequence[Any], arithmetic: torch.dtype) -> None:
        """Compare the losses and gradients of the first step with those of each network alone.

        Raises:
            CannotStackError: they differ, or the network or its loss cannot be computed for several networks at once.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an operation without a batched form would be slow, and only warns
                leaves, structure = self._leaves(batches)
                losses = self._losses(self.weights, leaves, structure)
                (gradients,) = torch.autograd.grad(losses.sum(), self.weights)
        except CannotStackError:
            raise
        except Exception as error:  # whatever a network does that vmap cannot follow
            raise CannotStackError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        most = MOST_DIFFERENCE[arithmetic]
        for network in dict.fromkeys(self._alone):
            index = self._alone.index(network)
            weights = list(_trained(network).values())
            value = self.loss(network, batches[index if len(batches) > 1 else 0])
            found = torch.autograd.grad(value, weights, allow_unused=True)
            if any(gradient is None for gradient in found):  # torch.optim leaves them alone, and here they would decay
                raise CannotStackError("some trained weights do not influence the loss")
            own = torch.cat([gradient.flatten() for gradient in found])
            for what, one, other in (
                ("loss", value.detach(), losses.detach()[index]),
                ("gradient", own, gradients[index]),
            ):
                distance = float((one - other).norm())
                if not distance <= most * max(float(one.norm()), float(other.norm())):
                    raise CannotStackError(f"the {what} in a stack is another than alone")
        self._alone = ()

    def _losses(self, weights: Tensor, inputs: Sequence[Tensor], structure: _Structure) -> Tensor:
        """The losses [networks] on batches as `_leaves` gives them."""
        parts = torch.split(weights, [shape.numel() for shape in self.shapes.values()], dim=1)
        named = {
            f"network.{name}": part.view(len(weights), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

        def one(own: dict[str, Tensor], *tensors: Tensor) -> Tensor:
            result: Tensor = functional_call(self._wrapped, own, (structure.batch(tensors),))
            return result

        dims = (0, *[None if structure.shared else 0] * len(inputs))
        with _attention(weights.device), _no_padding(self._configs):
            losses: Tensor = vmap(one, in_dims=dims, randomness="error")(named, *inputs)
        return losses

    @torch.no_grad()
    def _update(self, gradients: Tensor) -> None:
        """Take a step down the gradients [networks, weights], as `engine.Stepper` does for one network."""
        if self.free is not None:
            gradients = gradients * self.free
        if self.clip is not None:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients = gradients * (self.clip / (norms + 1e-6)).clamp(max=1.0)
        rates = self.rates.index_select(0, self.count.view(1)).view(-1, 1)
        self.count += 1
        if self.second is None:
            self.first.mul_(MOMENTUM).add_(gradients + self.decay * self.weights)
            self.weights.sub_(rates * self.first)
        else:
            # The powers are taken in float64, as in torch.optim: 1 - 0.999 has few digits in float32.
            corrections = [1 - beta ** self.count.double() for beta in BETAS]
            self.first.lerp_(gradients, 1 - BETAS[0])
            self.second.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
            scale = (self.second.sqrt() / corrections[1].sqrt().to(rates)).add_(EPSILON)
            self.weights.mul_(1 - rates * self.decay)
            self.weights.sub_(rates / corrections[0].to(rates) * (self.first / scale))
        if self.free is not None and self.start is not None:
            self.weights.copy_(torch.where(self.free, self.weights, self.start))

    # ------------------------------------------------------------------------------------------------------ networks

    @torch.no_grad()
    def network(self, row: Tensor) -> nn.Module:
        """The layers with these trained weights [weights], which the next call replaces."""
        weights = _trained(self.layers)
        parts = torch.split(row, [weight.numel() for weight in weights.values()])
        for weight, part in zip(weights.values(), parts, strict=True):
            weight.copy_(part.view_as(weight))
        return self.layers

    def copy(self, row: Tensor) -> nn.Module:
        """A network of its own with these trained weights [weights], in evaluation mode."""
        return copy.deepcopy(self.network(row)).eval()

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the networks at these places alone."""
        chosen = torch.tensor(places, device=self.weights.device)
        self.weights = self.weights.detach()[chosen].requires_grad_()
        self.rates, self.first = self.rates[:, chosen], self.first[chosen]
        self.second = None if self.second is None else self.second[chosen]
        self.start = None if self.start is None else self.start[chosen]
        self._graphs = Graphs(self._graphs.refused)

    @property
    def without_graphs(self) -> str | None:
        """Why no step could be recorded as a CUDA graph; None if none was refused."""
        return self._graphs.refused

    def _row(self, network: nn.Module) -> Tensor:
        """The trained weights of a network, end to end."""
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, name) for module in network.modules() for name in hooks):
            raise CannotStackError("the network has hooks")
        weights = _trained(network)
        if {name: weight.shape for name, weight in weights.items()} != self.shapes or not weights:
            raise CannotStackError("the networks train different weights")
        if len({(weight.dtype, weight.device) for weight in weights.values()}) > 1:
            raise CannotStackError("the weights differ in precision or device")
        others = zip(_rest(network), _rest(self.layers), strict=True)
        if not all(one is other or torch.equal(one, other) for one, other in others):
            raise CannotStackError("the networks differ in weights that are not trained")
        return torch.cat([weight.detach().flatten() for weight in weights.values()])

    def _each(self, of: Callable[[str, torch.Size], Tensor]) -> Tensor:
        """Something of each trained weight, end to end as in `weights`."""
        parts = [of(name, shape).flatten() for name, shape in self.shapes.items()]
        return torch.cat(parts).to(self.weights.device)

    def _leaves(self, batches: Sequence[Any]) -> tuple[list[Tensor], _Structure]:
        """The tensors of batches on the networks' device, with a first dimension for the networks if each has its own.

        Raises:
            CannotStackError: the batches differ in more than the values of their tensors.
        """
        flat = [trees.tree_flatten(batch) for batch in batches]
        structure = _Structure(
            flat[0][1], tuple(None if isinstance(x, Tensor) else x for x in flat[0][0]), len(flat) == 1
        )
        several = [[leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves, _ in flat]
        for (leaves, spec), tensors in zip(flat, several, strict=True):
            plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            shapes = [one.shape for one in tensors]
            if (spec, plain, shapes) != (structure.spec, structure.plain, [one.shape for one in several[0]]):
                raise CannotStackError("the networks' batches differ in shape")
        parts = several[0] if structure.shared else [torch.stack(part) for part in zip(*several, strict=True)]
        return [_moved(part, self.weights.device) for part in parts], structure


class _Loss(nn.Module):
    """A network's loss as a module, so that `functional_call` can put other weights into it."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.network, batch)


class _Structure:
    """What batches consist of beside the values of their tensors."""

    def __init__(self, spec: trees.TreeSpec, plain: tuple[Any, ...], shared: bool) -> None:
        self.spec = spec
        self.plain = plain
        """The parts of a batch in their order, with None for each tensor."""
        self.shared = shared
        """Whether all networks are trained on one batch."""

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """A batch with these tensors."""
        waiting = iter(tensors)
        return trees.tree_unflatten([next(waiting) if one is None else one for one in self.plain], self.spec)


class Graphs:
    """Steps recorded as CUDA graphs, one for each shape of batch, so that the GPU gets all kernels of a step at once.

    On the CPU, and where recording fails, steps are computed as they are.
    """

    def __init__(self, refused: str | None = None) -> None:
        self.refused = refused
        """Why a step could not be recorded; None if none was refused."""
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, Sequence[Tensor], Tensor]] = {}

    def run(
        self, structure: _Structure, inputs: Sequence[Tensor], action: Callable[[Sequence[Tensor]], Tensor]
    ) -> Tensor:
        """What `action` computes from the inputs. It changes nothing but tensors that are there before and after."""
        if self.refused is not None or not all(one.is_cuda for one in inputs):
            return action(inputs)
        shape = (structure.plain, *[(one.shape, one.dtype) for one in inputs])
        self._seen[shape] += 1
        if shape not in self._recorded:
            if self._seen[shape] <= WARM_UP or len(self._recorded) == MOST_GRAPHS:
                return action(inputs)
            try:
                self._recorded[shape] = self._record(inputs, action)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # some operation waits for the GPU; nothing was computed while recording
                self.refused = " ".join(str(error).split())[:200]
                return action(inputs)
        graph, own, result = self._recorded[shape]
        for tensor, given in zip(own, inputs, strict=True):
            tensor.copy_(given)
        graph.replay()
        return result.clone()

    def _record(
        self, inputs: Sequence[Tensor], action: Callable[[Sequence[Tensor]], Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor], Tensor]:
        """A graph, the tensors that it reads its inputs from, and the tensor that it writes its result to."""
        own = [one.clone() for one in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = action(own)
        return graph, own, result


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def _rest(network: nn.Module) -> list[Tensor]:
    """The weights that are not trained, and the buffers."""
    return [*(weight for weight in network.parameters() if not weight.requires_grad), *network.buffers()]


def _config(module: nn.Module) -> Any:
    return module.config if isinstance(module, PreTrainedModel) else None


@contextlib.contextmanager
def _no_padding(configs: Collection[Any]) -> Iterator[None]:
    """transformers looks for padding in each batch, to warn; that reads numbers, which a stack and a graph cannot."""
    before = [config.pad_token_id for config in configs]
    for config in configs:
        config.pad_token_id = None
    try:
        yield
    finally:
        for config, token in zip(configs, before, strict=True):
            config.pad_token_id = token


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy to a GPU does not wait until the GPU has done its earlier work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def _attention(device: torch.device) -> Iterator[None]:
    """PyTorch's math attention on the CPU, whose fused one has no batched form; on a GPU the one that PyTorch picks."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
        yield
