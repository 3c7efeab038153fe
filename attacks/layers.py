"""Layers: only one end of the network is trained, its first blocks and embeddings or its last blocks and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task, TrainedWeights
from nftbench.methods import adapters


@dataclass(frozen=True)
class Layers(Attack):
    """`share`: the share of the blocks that are trained, at least one block. `end=first` also trains everything before
    them (the embeddings), and `end=last` everything after them (the last norm and the head). Tied embeddings belong to
    both ends and are therefore untied."""

    trained_weights: ClassVar[TrainedWeights] = "part"

    end: Literal["first", "last"] = "last"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("share must lie in (0, 1]")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=self.adapter)

    def adapter(self, network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
        """The network, with one end requiring a gradient."""
        head = network.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        network.config.tie_word_embeddings = False
        blocks = adapters.blocks(network)
        if not blocks:
            raise NftbenchError("layers: the network has no list of blocks, of which a part could be trained")
        count = max(1, round(self.share * len(blocks)))
        chosen = blocks[:count] if self.end == "first" else blocks[-count:]
        within = {id(weight) for weight in blocks.parameters()}
        tables = [module for module in network.modules() if isinstance(module, nn.Embedding)]
        before = {id(weight) for table in tables for weight in table.parameters()}
        network.requires_grad_(False)
        chosen.requires_grad_(True)
        for weight in network.parameters():
            if id(weight) not in within and (id(weight) in before) == (self.end == "first"):
                weight.requires_grad_(True)
        return network
