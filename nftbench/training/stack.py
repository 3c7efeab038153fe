"""Several networks trained and scored at once, as one network whose trained weights have a further dimension.

A small network leaves a GPU waiting for its next kernel. In a stack each kernel serves all networks: `torch.func.vmap`
computes their losses from one call of the network. Weights that are not trained, such as those beneath LoRA, are there
once. PyTorch's fused optimizer updates each network by its own learning rate. Gradients are clipped for each network.
The numbers are those of training one by one, up to the order of summation.

Steps are recorded as CUDA graphs and not compiled: the confined process of an attack may start no compiler.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd
from torch.utils import _pytree as trees
from transformers import PreTrainedModel

from nftbench.contract import EachSplit, Mask, Measurement, OfEach
from nftbench.terms import Optimizer

Loss = Callable[[nn.Module, Any], Tensor]
"""The loss of a network on a batch, a scalar."""

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""torch.optim.AdamW's own, which an attack's steps use."""
MOMENTUM = 0.9
ELEMENTWISE: tuple[Optimizer, ...] = ("adamw", "sgd")
"""The optimizers that treat each weight alone. Muon treats a matrix as a whole."""
MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest relative distance between a stack's first losses, gradients and scores and those of its networks alone, by
the precision of the arithmetic. Rounding stays far below it."""
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
            raise CannotStackError(f"{optimizer} does not update each weight by itself")
        self.layers, self.loss, self.optimizer, self.clip = networks[0], loss, optimizer, clip
        self.shapes = {name: weight.shape for name, weight in _trained(self.layers).items()}
        rows = {network: self._row(network) for network in dict.fromkeys(networks)}
        self._alone = tuple(networks)
        self.weights = torch.stack([rows[network] for network in networks]).requires_grad_()
        # On a GPU the fused optimizer reads its rate in this precision, whatever that of the weights is.
        self.rates = rates.to(self.weights.device, torch.float32 if self.weights.is_cuda else torch.float64)
        self.first = torch.zeros_like(self.weights, requires_grad=False)
        self.second = torch.zeros_like(self.weights, requires_grad=False) if optimizer == "adamw" else None
        self.count = torch.zeros((), dtype=torch.int64, device=self.weights.device)
        self.weight_decay = weight_decay
        self.matrices = sum(shape.numel() for shape in self.shapes.values() if len(shape) > 1)
        self.free = None if mask is None else self._each(lambda name, _: mask[name]).bool()
        self.start = None if mask is None else self.weights.detach().clone()
        self._wrapped = _Applied(self.layers)
        self._scored = False
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

    def check(self, batches: Sequence[Any], alone: Sequence[Any], arithmetic: torch.dtype) -> None:
        """Compare the losses and gradients of the first step with those of each network alone.

        `alone` has for each of the `batches` the same documents as a network is trained on alone.

        Raises:
            CannotStackError: they differ, or the network or its loss cannot be computed for several networks at once.
        """
        with _refusing():
            leaves, structure = self._leaves(batches)
            losses = self._losses(self.weights, leaves, structure)
            (gradients,) = torch.autograd.grad(losses.sum(), self.weights)
        most = MOST_DIFFERENCE[arithmetic]
        for network in dict.fromkeys(self._alone):
            index = self._alone.index(network)
            weights = list(_trained(network).values())
            value = self.loss(network, alone[index if len(alone) > 1 else 0])
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
                    raise CannotStackError(f"the {what} in the stack differs from that alone")
        self._alone = ()

    def _losses(self, weights: Tensor, inputs: Sequence[Tensor], structure: _Structure) -> Tensor:
        """The losses [networks] on batches as `_leaves` gives them."""

        def loss(network: nn.Module, *tensors: Tensor) -> Tensor:
            return self.loss(network, structure.batch(tensors))

        losses: Tensor = self._of_each(weights, loss, inputs, None if structure.shared else 0)
        return losses

    def _of_each(
        self,
        weights: Tensor,
        function: Callable[..., Any],
        inputs: Sequence[Tensor] = (),
        dimension: int | None = None,
        at_once: int | None = None,
    ) -> Any:
        """A function of a network and inputs for networks with these trained weights [networks, weights].

        `dimension` is that of the networks in each input; None where all networks share the inputs. So many networks
        are computed `at_once`; None for all.
        """
        parts = torch.split(weights, [shape.numel() for shape in self.shapes.values()], dim=1)
        named = {
            f"network.{name}": part.view(len(weights), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

        def one(own: dict[str, Tensor], *tensors: Tensor) -> Any:
            return functional_call(self._wrapped, own, (function, *tensors))

        dims = (0, *[dimension] * len(inputs))
        with _attention(weights.device), _no_padding(self._configs):
            return vmap(one, in_dims=dims, randomness="error", chunk_size=at_once)(named, *inputs)

    @torch.no_grad()
    def _update(self, gradients: Tensor) -> None:
        """Take a step down the gradients [networks, weights], as `engine.Stepper` does for one network."""
        if self.free is not None:
            gradients.mul_(self.free)
        if self.clip is not None:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients.mul_((self.clip / (norms + 1e-6)).clamp(max=1.0))
        rates = self.rates.index_select(0, self.count.view(1)).view(-1, 1)
        decaying = self.weights[:, : self.matrices]
        if self.second is None:
            gradients[:, : self.matrices].add_(decaying, alpha=self.weight_decay)
        else:
            decaying.mul_(1 - rates * self.weight_decay)
        steps = self.count.float().repeat(len(rates))  # the optimizer counts in place, and each network for itself
        for place, rate in enumerate(rates.view(-1).unbind()):
            self._take_step(place, gradients, rate, steps)
        self.count += 1
        if self.free is not None and self.start is not None:
            self.weights.copy_(torch.where(self.free, self.weights, self.start))

    def _take_step(self, place: int, gradients: Tensor, rate: Tensor, steps: Tensor) -> None:
        """PyTorch's fused step of one network's weights. The rate is a tensor, as a CUDA graph needs it."""
        weights, gradient, first = [self.weights[place]], [gradients[place]], [self.first[place]]
        if self.second is None:
            sgd(
                weights,
                gradient,
                [*first],
                fused=True,
                lr=rate,  # type: ignore[arg-type]  # SGD itself passes tensors, too
                weight_decay=0.0,
                momentum=MOMENTUM,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        else:
            adamw(
                weights,
                gradient,
                first,
                [self.second[place]],
                [],
                [steps[place]],
                fused=True,
                lr=rate,
                weight_decay=0.0,
                beta1=BETAS[0],
                beta2=BETAS[1],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    # ------------------------------------------------------------------------------------------------------- scoring

    def of_each(self, rows: Tensor) -> OfEach:
        """Computes functions of the networks with these trained weights [networks, weights], without gradients."""

        @torch.no_grad()
        def compute(function: Callable[[nn.Module], tuple[Tensor, ...]], at_once: int) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = self._of_each(rows, function, at_once=at_once)
            return found

        return compute

    def scores(
        self, rows: Tensor, split: EachSplit, alone: Callable[[nn.Module], Measurement], arithmetic: torch.dtype
    ) -> Sequence[Measurement]:
        """The scores on a split of networks with these trained weights [networks, weights].

        The first time, a finite one is compared with what `alone` says of the same network.

        Raises:
            CannotStackError: it differs, or the split cannot score several networks at once.
        """
        with _refusing():
            found = split.evaluate_each(self.of_each(rows))
        known = [place for place, one in enumerate(found) if math.isfinite(one.value if one.loss is None else one.loss)]
        if not self._scored and known:
            place = known[0]
            if not _alike(found[place], alone(self.network(rows[place])), MOST_DIFFERENCE[arithmetic]):
                raise CannotStackError("a score in the stack differs from the score alone")
            self._scored = True
        return found

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
            flat[0][1], tuple(... if isinstance(x, Tensor) else x for x in flat[0][0]), len(flat) == 1
        )
        several = [[leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves, _ in flat]
        for (leaves, spec), tensors in zip(flat, several, strict=True):
            plain = tuple(... if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            shapes = [one.shape for one in tensors]
            if (spec, plain, shapes) != (structure.spec, structure.plain, [one.shape for one in several[0]]):
                raise CannotStackError("the networks' batches differ in shape")
        parts = several[0] if structure.shared else [torch.stack(part) for part in zip(*several, strict=True)]
        return [_moved(part, self.weights.device) for part in parts], structure


class _Applied(nn.Module):
    """A function of a network as a module, so that `functional_call` can put other weights into the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        return function(self.network, *inputs)


class _Structure:
    """What batches consist of beside the values of their tensors."""

    def __init__(self, spec: trees.TreeSpec, plain: tuple[Any, ...], shared: bool) -> None:
        self.spec = spec
        self.plain = plain
        """The parts of a batch in their order, with `...` for each tensor."""
        self.shared = shared
        """Whether all networks are trained on one batch."""

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """A batch with these tensors."""
        waiting = iter(tensors)
        return trees.tree_unflatten([next(waiting) if one is ... else one for one in self.plain], self.spec)


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


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever happens in a network that vmap cannot follow into a CannotStackError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an operation without a batched form would be slow, and only warns
            yield
    except CannotStackError:
        raise
    except Exception as error:
        raise CannotStackError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _alike(one: Measurement, other: Measurement, most: float) -> bool:
    """Whether two measurements of one network agree, in their loss if they have one.

    The distance is relative, or absolute below 1, because rounding moves a small loss by much of itself. A score may
    differ by a few documents whose choices are almost equally likely.
    """
    if (one.metric, one.count) != (other.metric, other.count) or (one.loss is None) != (other.loss is None):
        return False
    value, expected = (one.value, other.value) if one.loss is None or other.loss is None else (one.loss, other.loss)
    return abs(value - expected) <= most * max(1.0, abs(expected))


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained: first the matrices, then the vectors, which have no weight decay."""
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    return dict(sorted(named, key=lambda pair: pair[1].ndim < 2))


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
