"""Distillation of one causal LM into another: MLP by MLP, and jointly on the logits.

An MLP is whatever `nftbench.models.architectures.dlr.mlps` finds: a standard MLP, the DLR-Net that replaces it, or what
else an architecture has in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from nftbench.methods.overhead import kl
from nftbench.models.architectures import dlr


def module_losses(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Iterator[Tensor]:
    """Relative squared error of each of the student's MLPs, on `tokens` [batch, block].

    ‖student_l(x_l) - teacher_l(x_l)‖² / ‖teacher_l(x_l)‖², where x_l is the input of the teacher's MLP l. A step takes
    their sum, and one graph at a time is in memory.
    """
    with torch.no_grad():
        traces, _ = traced(teacher, tokens)
    for net, (x, y) in zip(dlr.mlps(student).values(), traces, strict=True):
        yield error(_hidden(net(x)), y)


def joint_losses(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Iterator[Tensor]:
    """KL(teacher ‖ student) of the logits in nats, then the errors of `module_losses` on the student's inputs x_l."""
    with torch.no_grad():
        wanted = teacher(input_ids=tokens).logits
    traces, logits = traced(student, tokens)
    yield kl(logits, wanted)
    # The inputs are detached. Otherwise a layer would learn to produce inputs that the next MLP already handles well.
    inputs = [x.detach() for x, _ in traces]
    del traces, logits, wanted  # their graph was needed for the first loss alone
    for net, mlp, x in zip(dlr.mlps(student).values(), dlr.mlps(teacher).values(), inputs, strict=True):
        with torch.no_grad():
            target = _hidden(mlp(x))
        yield error(_hidden(net(x)), target)


def total(losses: Iterable[Tensor]) -> Tensor:
    """The sum of losses, with all their graphs in memory at once."""
    return torch.stack([*losses]).sum()


def traced(network: nn.Module, tokens: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Input and output [batch, block, width] of every MLP, and the logits [batch, block, vocabulary]."""
    modules = dlr.mlps(network).values()
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # a block may run its MLPs in another order than it lists them

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        found[module] = inputs[0], _hidden(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    logits = network(input_ids=tokens).logits
    for hook in hooks:
        hook.remove()
    return [found[module] for module in modules], logits


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states that an MLP returns. Some mixtures of experts also return the router's scores."""
    return output[0] if isinstance(output, tuple) else output


def error(output: Tensor, target: Tensor) -> Tensor:
    """‖output - target‖² / ‖target‖². An output of zeros has an error of 1."""
    return (output - target).square().sum() / target.square().sum()
