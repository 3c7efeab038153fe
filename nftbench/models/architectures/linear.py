"""The linear family: a linear feature extractor under a linear probe, the setting of the condition-number paper.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, section 3: the features are f_theta(x) = x^T theta with theta
[D, D] and no bias, and the probe is w [D, n]. The extractor is initialised to the identity, which is the paper's
undefended baseline. (The authors' code draws it at random and gives it a bias.) The probe is initialised to zero, so an
untrained model outputs 0 for every input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.utils import ModelOutput


class LinearConfig(PreTrainedConfig):  # type: ignore[misc]
    """`input_dim` is D, the width of a row of inputs; `output_dim` is n, the count of numbers to predict."""

    model_type = "linear"
    input_dim: int = 1
    output_dim: int = 1


class Extractor(nn.Linear):
    """The map x -> x theta; `weight` is theta^T. It has its own class because transformers initialises by class."""


@dataclass
class LinearOutput(ModelOutput):  # type: ignore[misc]
    """`outputs` [N, n], and the `features` x theta [N, D] that the probe reads."""

    outputs: Tensor | None = None
    features: Tensor | None = None


class LinearModel(PreTrainedModel):  # type: ignore[misc]
    """Computes (x theta) w in the precision of its weights."""

    config_class = LinearConfig
    main_input_name = "inputs"

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.extractor = Extractor(config.input_dim, config.input_dim, bias=False)
        self.head = nn.Linear(config.input_dim, config.output_dim, bias=False)
        self.post_init()

    @property
    def theta(self) -> Tensor:
        """The extractor's matrix in the paper's orientation, [D, D]."""
        return self.extractor.weight.mT

    def forward(self, inputs: Tensor, **_: Any) -> LinearOutput:
        """Outputs and features of `inputs` [N, D]."""
        features = self.extractor(inputs.to(self.extractor.weight))
        return LinearOutput(outputs=self.head(features), features=features)

    def get_output_embeddings(self) -> nn.Module:
        """The probe: attacks ask every network for its output head by this method."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Extractor):
            init.eye_(module.weight)
        elif isinstance(module, nn.Linear):
            init.zeros_(module.weight)


def register() -> None:
    """Register the family with transformers' Auto classes."""
    AutoConfig.register(LinearConfig.model_type, LinearConfig, exist_ok=True)
    AutoModel.register(LinearConfig, LinearModel, exist_ok=True)
