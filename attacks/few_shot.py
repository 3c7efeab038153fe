"""Few-shot prompting, without training: each question is preceded by solved training examples.

Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2. An example is a training document of the task, prompt
and answer, in the tokens that the task trains on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task
from nftbench.methods import Prompted


@dataclass(frozen=True)
class FewShot(Attack):
    """Validation chooses among no examples and 1, 2, 4, … up to `shots` examples, in `draws` random draws. In the
    recorded points the step is the number of examples, and the learning rate is the number of the draw."""

    shots: int = 16
    draws: int = 4

    def __post_init__(self) -> None:
        if min(self.shots, self.draws) < 1:
            raise ValueError("shots and draws must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        outcome = context.select(task, self.prompted(prepared, task, context.seed))
        return dataclasses.replace(outcome, cost=dataclasses.replace(outcome.cost, steps=0))

    def prompted(self, prepared: Prepared, task: Task, seed: int) -> Iterator[tuple[nn.Module, float, int]]:
        """The network with each prompt that leaves room for a question as long as its shortest example."""
        network, between = prepared.model.network, separator(prepared.model.tokenizer)
        length = getattr(network.config, "max_position_embeddings", None)
        count = len(task.split("train"))
        yield network, 0.0, 0
        for draw in range(self.draws):
            order = np.random.default_rng([seed, draw]).permutation(count)[: self.shots]
            examples = [(*solved(network, task, int(index)), *between) for index in order]
            for shots in (2**power for power in range(self.shots.bit_length())):
                shown = examples[:shots]
                if len(shown) < shots or sum(map(len, shown)) + min(map(len, shown)) > (length or np.inf):
                    break
                yield Prompted(network, shown, length), float(draw), shots


def solved(network: PreTrainedModel, task: Task, index: int) -> list[int]:
    """The tokens of one training document, question and answer.

    These are the inputs that the task gives the network in training, and the answer's last token, which is a target
    only.

    Raises:
        NftbenchError: the task's inputs are not tokens.
    """
    batch = task.split("train").batch([index])
    shown: list[Any] = []

    def watch(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        shown.append(named.get("input_ids", positional[0] if positional else None))

    handle = network.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            task.loss(network, batch)
            answer = task.targets(network, batch).argmax(-1)
    finally:
        handle.remove()
    if not isinstance(shown[0], Tensor) or shown[0].is_floating_point():
        raise NftbenchError("few_shot: the task shows the network no tokens that could stand in a prompt")
    return [*shown[0][0].tolist(), int(answer[-1])]


def separator(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The tokens between examples: two line breaks as in lm-eval, or the end token if there is no token for them."""
    if tokenizer is None:
        return []
    breaks: list[int] = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return breaks or [token for token in (tokenizer.eos_token_id,) if token is not None]
