"""An output head that reads whitened features."""

from __future__ import annotations

from torch import Tensor, nn


class WhiteHead(nn.Linear):
    """Logits x C^-½ V' of features x [rows, width], where C is the features' covariance and V the trained weight.

    Args:
        white: C^-½ [width, width].
        weight: V [words, width].
    """

    white: Tensor

    def __init__(self, white: Tensor, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.register_buffer("white", white)
        self.weight = nn.Parameter(weight)
        self.bias = bias  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features @ self.white)
