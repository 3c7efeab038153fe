"""A narrower model: dense and pre-trained like the base, with as many parameters as a mask would train. Trivial."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any, ClassVar

from nftbench import Defense, Model, NftbenchError, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Narrow(Defense):
    """`keep`: the share of the base's parameters. The width that comes nearest is taken, among those with heads of even
    size, which RoPE needs."""

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True

    keep: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie between 0 and 1, not {self.keep:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        config = model.network.config
        wanted = self.keep * _parameters(model)
        widths = range(2 * config.num_attention_heads, config.hidden_size, 2 * config.num_attention_heads)
        if not widths:
            raise NftbenchError(f"narrow: no width below {config.hidden_size} fits {config.num_attention_heads} heads")

        def excess(width: int) -> float:
            return _parameters(context.build(**_changes(config, width))) - wanted

        above = bisect.bisect_left(widths, 0.0, key=excess)
        nearest = min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(excess(width)))
        return Protected(context.pretrain(context.build(**_changes(config, nearest))))


def _parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.network.parameters())


def _changes(config: Any, width: int) -> dict[str, Any]:
    """The configuration fields that depend on the width. The MLPs' expansion factor and the number of heads stay."""
    changes = {"hidden_size": width}
    for field in ("intermediate_size", "n_inner"):
        value = getattr(config, field, None)
        if value is not None:
            changes[field] = round(value * width / config.hidden_size)
    if getattr(config, "head_dim", None) is not None:
        changes["head_dim"] = width // config.num_attention_heads
    return changes
