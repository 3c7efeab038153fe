"""Distillation of one causal LM into another: MLP by MLP, and jointly on the logits.

An MLP is whatever `nftbench.models.architectures.dlr.mlps` finds: a standard MLP, the DLR-Net that replaces it, or what
else an architecture has in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nftbench.methods.overhead import kl
from nftbench.models.architectures import dlr


def module_loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """Relative squared error of the student's MLPs, summed over layers, on `tokens` [batch, block].

    Σ_l ‖student_l(x_l) - teacher_l(x_l)‖² / ‖teacher_l(x_l)‖², where x_l is the input of the teacher's MLP l.
    """
    with torch.no_grad():
        traces, _ = traced(teacher, tokens)
    students = dlr.mlps(student).values()
    return torch.stack([error(_hidden(net(x)), y) for net, (x, y) in zip(students, traces, strict=True)]).sum()


def joint_loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the logits in nats, plus the error of `module_loss` on the student's MLP inputs x_l."""
    with torch.no_grad():
        wanted = teacher(input_ids=tokens).logits
    traces, logits = traced(student, tokens)
    # The inputs are detached. Otherwise a layer would learn to produce inputs that the next MLP already handles well.
    inputs = [x.detach() for x, _ in traces]
    with torch.no_grad():
        targets = [_hidden(mlp(x)) for mlp, x in zip(dlr.mlps(teacher).values(), inputs, strict=True)]
    students = dlr.mlps(student).values()
    errors = [error(_hidden(net(x)), y) for net, x, y in zip(students, inputs, targets, strict=True)]
    return kl(logits, wanted) + torch.stack(errors).sum()


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
