"""The weight matrices of a network, and other parameters in their place.

The matrices are those of linear layers, of the output head and of experts that are stored in one tensor. Embeddings,
convolutions and vectors are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Matrix:
    """One weight of a module: [outputs, inputs], or [inputs, outputs] for GPT-2's `Conv1D`.

    Experts in one tensor put their number in front.
    """

    module: nn.Module
    own: str
    """The weight's name in its module."""

    @property
    def weight(self) -> Tensor:
        found: Tensor = getattr(self.module, self.own)
        return found

    @property
    def output_first(self) -> bool:
        """Whether the outputs come before the inputs."""
        return not isinstance(self.module, Conv1D)


def of(network: nn.Module) -> dict[str, Matrix]:
    """The matrices of a network by the full names of their parameters.

    A matrix that is tied to the embeddings has the name of the head's weight.
    """
    found: dict[str, Matrix] = {}
    for name, module in network.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            layer = isinstance(module, nn.Linear | Conv1D) and weight.ndim == 2
            experts = weight.ndim == 3 and not isinstance(module, nn.Conv1d)
            if layer or experts:
                found[f"{name}.{own}" if name else own] = Matrix(module, own)
    return found


def replace(network: PreTrainedModel, parts: Mapping[str, Callable[[Tensor], nn.Module]]) -> None:
    """Give matrices other parameters, by PyTorch's parametrizations.

    Args:
        parts: by the matrix's name, what makes a parametrization of its weight: a module whose `right_inverse` maps the
            weight to the new parameters, and whose `forward` maps these back to it.

    A head that is tied to the embeddings is untied if it is among them, so that these stay a table of their own.
    """
    known, head = of(network), network.get_output_embeddings()
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    if head is not None and id(head.weight) in tables and any(known[name].module is head for name in parts):
        head.weight = nn.Parameter(head.weight.detach().clone())
        network.config.tie_word_embeddings = False
    for name, make in parts.items():
        matrix = known[name]
        parametrize.register_parametrization(matrix.module, matrix.own, make(matrix.weight.detach()))
