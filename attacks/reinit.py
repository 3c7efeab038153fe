"""Re-initialisation: the first or the last blocks are replaced by untrained ones, then every weight is fine-tuned.

It removes whatever a defense hid in those blocks, but also what they had learned. Defenses in other blocks remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, NftbenchError, Outcome, Prepared, Task
from nftbench.methods import adapters


@dataclass(frozen=True)
class Reinit(Attack):
    """`count`: the number of blocks at the end that `blocks` names. Each attack seed draws its own initialisation."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})

    blocks: Literal["first", "last"] = "last"
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        def redrawn(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
            fresh = context.untrained(prepared.model, attack_seed)
            for old, new in zip(self.chosen(network), self.chosen(fresh), strict=True):
                old.load_state_dict(new.state_dict())
            return network

        return context.sweep(prepared.model, task, adapter=redrawn)

    def chosen(self, network: PreTrainedModel) -> list[nn.Module]:
        """The decoder blocks to re-initialise."""
        blocks = list(adapters.blocks(network))
        if len(blocks) < self.count:
            raise NftbenchError(f"reinit: the network has {len(blocks)} blocks, not {self.count}")
        return blocks[: self.count] if self.blocks == "first" else blocks[-self.count :]
