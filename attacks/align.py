"""Alignment: a transform that hides an update from merging is solved for in closed form, undone, and then merged.

A network computes the same function if the units of an MLP are permuted, or if the features inside an attention head
are multiplied by a matrix and its readers by the inverse. Releases in such coordinates cannot be added to others. But
an update is small beside the base's weights: least squares from these to the release gives the transform. This follows
"On the Vulnerability of Parameter-Level Defenses to Model Merging" (2026, https://arxiv.org/abs/2606.30360). Only a
summary of that paper was available to us: the choice of transforms and the solvers are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Adaptation, Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Spec, Task
from nftbench.methods import symmetries, updates

CLOSER = 0.5
"""A transform is undone if the weights then lie closer to the base by this factor at least. An update without a
transform stays as it is: least squares would only explain a small part of it."""
SINGULAR = 1e8
"""The condition number above which a solved transform has no usable inverse."""


@dataclass(frozen=True)
class Align(Attack):
    """`operator`: how the aligned update is merged, as in `merge`. Transforms are sought in models like GPT-2, Llama
    and Qwen3. They are a matrix in each head of values and outputs; one in each head of queries and keys, with rotary
    positions a rotation and scale for each pair, and none under norms; a permutation of the units of an MLP, and scales
    where the activation allows them."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})
    adaptation: ClassVar[Adaptation] = "merging"
    against: ClassVar[frozenset[str]] = frozenset({"trap2"})

    operator: Literal["task_arithmetic", "ties", "dare_ties"] = "task_arithmetic"

    def uses(self) -> tuple[str, ...]:
        return (str(Spec("merge", () if self.operator == "task_arithmetic" else (("operator", self.operator),))),)

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network, base = release.model.network, context.base.network
        if not align(network, base):
            return Prepared(release.model, update=release.update)
        return Prepared(release.model, update=updates.difference(network, base))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        (merge,) = self.uses()
        return context.attack(merge).adapt(prepared, task, context)


@dataclass(frozen=True)
class Change:
    """New values for a part of the release's weights, and what the base has there."""

    part: Tensor
    """A view of a parameter of the release."""
    new: Tensor
    base: Tensor


@torch.no_grad()
def align(network: PreTrainedModel, base: PreTrainedModel) -> int:
    """Undo transforms of `network` in place, and return how many. Its outputs do not change, up to rounding."""
    own, other = symmetries.anatomy(network), symmetries.anatomy(base)
    if own is None or other is None or len(own.blocks) != len(other.blocks):
        return 0
    count = 0
    for mine, theirs in zip(own.blocks, other.blocks, strict=True):
        for changes in (*_values(mine.attention, theirs.attention), *_scores(mine.attention, theirs.attention)):
            count += _apply(changes)
        for units, reference in zip(mine.units, theirs.units, strict=True):
            count += _apply(_permuted(units, reference))
            count += _apply(_scaled(units, reference))
    return count


def _apply(changes: list[Change]) -> bool:
    """Make the changes if they bring the weights closer to the base; say whether they were made."""
    before, after = (
        sum(float((values - one.base.double()).square().sum()) for one, values in pairs)
        for pairs in ([(one, one.part.double()) for one in changes], [(one, one.new) for one in changes])
    )
    if not changes or after > CLOSER**2 * before:
        return False
    for one in changes:
        one.part.copy_(one.new)
    return True


def _layer(own: symmetries.Affine, base: symmetries.Affine, change: Callable[[Tensor], Tensor]) -> list[Change]:
    """A linear layer whose rows of weights and biases change together."""
    table = change(own.table)
    width = own.weight.shape[1]
    found = [Change(own.weight, table[:, :width], base.weight)]
    if own.bias is not None and base.bias is not None:
        found.append(Change(own.bias, table[:, width], base.bias))
    return found


# ------------------------------------------------------------------------------------------------------------ attention


def _values(own: symmetries.Attention, base: symmetries.Attention) -> Iterator[list[Change]]:
    """In each head the values are T·values, and the outputs read them by the inverse of T."""
    for head in range(own.key_heads):
        rows = head * own.size, (head + 1) * own.size
        columns = slice(rows[0] * own.group, rows[1] * own.group)
        value, reference = own.value.outputs(*rows), base.value.outputs(*rows)
        solved = _transform(value.table, reference.table)
        if solved is None:
            continue
        transform, inverse = solved
        output = own.output.weight[:, columns]
        heads = output.double().reshape(len(output), own.group, own.size) @ transform
        changes = _layer(value, reference, lambda table, inverse=inverse: inverse @ table)  # type: ignore[misc]
        yield [*changes, Change(output, heads.flatten(1), base.output.weight[:, columns])]


def _scores(own: symmetries.Attention, base: symmetries.Attention) -> Iterator[list[Change]]:
    """In each head the queries are T·queries, and the keys are multiplied by the transposed inverse of T."""
    if own.norms is not None:
        return
    for head in range(own.key_heads):
        rows = head * own.size, (head + 1) * own.size
        query, query_base = (one.query.outputs(rows[0] * own.group, rows[1] * own.group) for one in (own, base))
        key, key_base = own.key.outputs(*rows), base.key.outputs(*rows)
        solve = _rotary if own.rotary else _transform
        # The heads of a group share their keys, and so the transform: their columns stand side by side.
        beside = [one.table.reshape(own.group, own.size, -1).transpose(0, 1).flatten(1) for one in (query, query_base)]
        solved = solve(*beside)
        if solved is None:
            continue
        transform, inverse = solved

        def heads(table: Tensor, inverse: Tensor = inverse) -> Tensor:
            turned: Tensor = inverse @ table.reshape(own.group, own.size, -1)
            return turned.flatten(0, 1)

        changes = _layer(query, query_base, heads)
        yield [*changes, *_layer(key, key_base, lambda table, turn=transform.mT: turn @ table)]  # type: ignore[misc]


def _transform(own: Tensor, base: Tensor) -> tuple[Tensor, Tensor] | None:
    """T with own = T·base by least squares, and its inverse; None where it has none."""
    transform = torch.linalg.lstsq(base.mT, own.mT, driver="gelsd").solution.mT
    if not float(torch.linalg.cond(transform)) < SINGULAR:
        return None
    return transform, torch.linalg.inv(transform)


def _rotary(own: Tensor, base: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same where T turns and scales each rotary pair of rows i and i + size / 2, as a complex number does."""
    mine, theirs = (torch.complex(*table.chunk(2)) for table in (own, base))
    sizes = theirs.abs().square().sum(1)
    factors = (theirs.conj() * mine).sum(1) / sizes
    if not bool((factors.abs() > 0).all()) or not bool(factors.isfinite().all()):
        return None

    def matrix(numbers: Tensor) -> Tensor:
        real, imaginary = numbers.real.diag(), numbers.imag.diag()
        return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])

    return matrix(factors), matrix(1 / factors)


# ---------------------------------------------------------------------------------------------------------------- units


def _permuted(own: symmetries.Units, base: symmetries.Units) -> list[Change]:
    """The units in the order in which their inner weights point most in the directions of the base's."""
    one, other = (torch.nn.functional.normalize(units.inner.table, dim=1) for units in (own, base))
    _, order = linear_sum_assignment((other @ one.mT).cpu().numpy(), maximize=True)
    changes = [Change(own.output.weight, own.output.weight.double()[:, order], base.output.weight)]
    for mine, theirs in zip(own.read, base.read, strict=True):
        changes += _layer(mine, theirs, lambda table: table[order])
    return changes


def _scaled(own: symmetries.Units, base: symmetries.Units) -> list[Change]:
    """The linear factor of each gated unit, or the inner weights under ReLU, divided by their scale."""
    probe = torch.linspace(-3, 3, 7, dtype=torch.float64)
    homogeneous = torch.allclose(own.activation(2 * probe), 2 * own.activation(probe))
    if own.linear is not None and base.linear is not None:
        mine, theirs = own.linear, base.linear
    elif homogeneous:
        mine, theirs = own.inner, base.inner
    else:
        return []
    scales = (mine.table * theirs.table).sum(1) / theirs.table.square().sum(1)
    usable = scales.isfinite() & ((scales > 0) | ((scales < 0) & (mine is own.linear)))
    if not bool(usable.all()):
        return []
    output = Change(own.output.weight, own.output.weight.double() * scales, base.output.weight)
    return [output, *_layer(mine, theirs, lambda table: table / scales[:, None])]
