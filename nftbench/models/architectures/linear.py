"""The linear family: a linear feature extractor with a linear probe, the setting of the condition-number paper.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, section 3: f_theta(x) = x^T theta with theta [D, D], no bias, and a
probe w [D, n] on top. The extractor starts as the identity (the paper's undefended baseline; the authors' code draws it
at random and gives it a bias) and the probe at zero, so that an untrained model says 0 whatever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.utils import ModelOutput


class LinearConfig(PreTrainedConfig):  # type: ignore[misc]
    """`input_dim`: D, numbers in a row; `output_dim`: n, numbers to predict."""

    model_type = "linear"
    input_dim: int = 1
    output_dim: int = 1


class Extractor(nn.Linear):
    """x -> x theta; `weight` is theta^T. A class of its own, because transformers initialises weights by class."""


@dataclass
class LinearOutput(ModelOutput):  # type: ignore[misc]
    """`outputs` [N, n]; `features` [N, D] = x theta, what the probe reads."""

    outputs: Tensor | None = None
    features: Tensor | None = None


class LinearModel(PreTrainedModel):  # type: ignore[misc]
    """outputs = (x theta) w, in whatever precision the weights have."""

    config_class = LinearConfig
    main_input_name = "inputs"

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.extractor = Extractor(config.input_dim, config.input_dim, bias=False)
        self.head = nn.Linear(config.input_dim, config.output_dim, bias=False)
        self.post_init()

    @property
    def theta(self) -> Tensor:
        """The extractor as the paper writes it, [D, D]."""
        return self.extractor.weight.mT

    def forward(self, inputs: Tensor, **_: Any) -> LinearOutput:
        """`inputs` [N, D]."""
        features = self.extractor(inputs.to(self.extractor.weight))
        return LinearOutput(outputs=self.head(features), features=features)

    def get_output_embeddings(self) -> nn.Module:
        """The probe, under the name by which attacks look for a network's head."""
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
    """Make the Auto classes know the family."""
    AutoConfig.register(LinearConfig.model_type, LinearConfig, exist_ok=True)
    AutoModel.register(LinearConfig, LinearModel, exist_ok=True)
