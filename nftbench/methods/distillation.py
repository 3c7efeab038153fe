"""Distillation of one causal LM into another: MLP by MLP, and jointly on logits.

`nftbench.models.architectures.dlr.mlps` says what an MLP is: a standard one or the DLR-Net in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nftbench.methods.overhead import kl
from nftbench.models.architectures import dlr


def module_loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """Σ_l ‖student_l(x_l) - teacher_l(x_l)‖² / ‖teacher_l(x_l)‖² over the MLPs, with x_l the teacher's own inputs."""
    with torch.no_grad():
        traces, _ = traced(teacher, tokens)
    students = dlr.mlps(student).values()
    return torch.stack([error(net(x), y) for net, (x, y) in zip(students, traces, strict=True)]).sum()


def joint_loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the logits, plus `module_loss` with x_l the student's own MLP inputs."""
    with torch.no_grad():
        wanted = teacher(input_ids=tokens).logits
    traces, logits = traced(student, tokens)
    # The inputs are held fixed here, or a layer would learn to send the next one only what that can already do.
    inputs = [x.detach() for x, _ in traces]
    with torch.no_grad():
        targets = [mlp(x) for mlp, x in zip(dlr.mlps(teacher).values(), inputs, strict=True)]
    students = dlr.mlps(student).values()
    errors = [error(net(x), y) for net, x, y in zip(students, inputs, targets, strict=True)]
    return kl(logits, wanted) + torch.stack(errors).sum()


def traced(network: nn.Module, tokens: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Input and output of every MLP [batch, block, width], and the logits."""
    found: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: found.append((inputs[0], output)))
        for module in dlr.mlps(network).values()
    ]
    logits = network(input_ids=tokens).logits
    for hook in hooks:
        hook.remove()
    return found, logits


def error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error over the target's own square: 1 is what saying nothing gets."""
    return (output - target).square().sum() / target.square().sum()
