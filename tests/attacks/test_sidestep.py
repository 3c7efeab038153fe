"""Sidestepping: no matrix moves along the directions of its largest gradients, and all others may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nftbench.attacks.sidestep import Sidestepped, steepest
from nftbench.methods import matrices
from nftbench.training.costs import gradients
from tests.attacks.planted import WORDS, attacked, broken_by, loud_features, same, undefended

TOKENS = torch.randint(WORDS, (3, 16, 8), generator=torch.Generator().manual_seed(2))


def test_directions_are_the_first_singular_vectors_of_all_gradients() -> None:
    network = undefended()
    known, batches = matrices.of(network), [gradients(network, tokens) for tokens in TOKENS]
    found = steepest(batches, known, 3)
    assert found.keys() == known.keys() - {"lm_head.weight"}  # it is the table of embeddings
    for name, (left, right) in found.items():
        beside = torch.cat([batch[name].double() for batch in batches], 1)
        above = torch.cat([batch[name].double() for batch in batches], 0)
        wanted = torch.linalg.svd(beside).U[:, :3], torch.linalg.svd(above).Vh[:3].mT
        for own, other in zip((left, right), wanted, strict=True):
            torch.testing.assert_close(own @ own.mT, other @ other.mT, atol=1e-6, rtol=0)


def test_at_most_half_of_the_directions_are_left_out() -> None:
    network = undefended()
    for left, right in steepest([gradients(network, TOKENS[0])], matrices.of(network), 100).values():
        assert left.shape[1] == left.shape[0] // 2
        assert right.shape[1] == right.shape[0] // 2


def test_a_gate_with_one_output_still_moves() -> None:
    """Half of one direction is none, so nothing is left out on that side."""
    gate, generator = nn.Linear(6, 1, bias=False), torch.Generator().manual_seed(0)
    gradient, moved = (torch.randn(1, 6, generator=generator) for _ in range(2))
    found = steepest([{"gate.weight": gradient}], {"gate.weight": matrices.Matrix(gate, "weight")}, 1)
    left, right = found["gate.weight"]
    assert (left.shape, right.shape) == ((1, 0), (6, 1))
    step = Sidestepped(gate.weight.detach(), left, right)(moved) - gate.weight.detach()
    unit = gradient / gradient.norm()
    torch.testing.assert_close(step, moved - (moved @ unit.mT) @ unit)


def test_the_displacement_is_orthogonal_to_the_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    start, moved = (torch.randn(2, 6, 5, generator=generator) for _ in range(2))
    left, right = (torch.linalg.qr(torch.randn(2, size, 2, generator=generator)).Q for size in (6, 5))
    own = Sidestepped(start, left, right)
    assert torch.equal(own(own.right_inverse(start)), start)
    step = own(moved) - start
    assert float((left.mT @ step).abs().max()) < 1e-5
    assert float((step @ right).abs().max()) < 1e-5
    wanted = (torch.eye(6) - left @ left.mT) @ moved @ (torch.eye(5) - right @ right.mT)
    torch.testing.assert_close(step, wanted)


@pytest.mark.slow
def test_it_breaks_steep_directions_and_some_other_attacks_do_too() -> None:
    """`full` ends at 0.78 here. `sidestep` is not alone, so that it adds nothing here and is not in `standard`."""
    release = loud_features()
    assert same(undefended("gpt_neox"), release)
    assert broken_by(release, 0.93) == {"sidestep", "long", "reinit", "scratch"}


def test_it_learns_the_task_on_the_undefended_model() -> None:
    assert attacked("sidestep[directions=2]", undefended("gpt_neox"))[0] > 0.95
