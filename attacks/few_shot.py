"""Few-shot prompting, without training: solved training examples stand before each question.

Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2. Examples are a task's own prompts and targets, as it
encodes them for training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task


@dataclass(frozen=True)
class FewShot(Attack):
    """No examples, and powers of two of them up to `shots`, in `draws` random draws, are tried on validation. A point's
    step is the number of examples, its learning rate the number of the draw."""

    shots: int = 16
    draws: int = 4

    def __post_init__(self) -> None:
        if min(self.shots, self.draws) < 1:
            raise ValueError("shots and draws must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        outcome = context.select(task, self.prompted(prepared, task, context.seed))
        return dataclasses.replace(outcome, cost=dataclasses.replace(outcome.cost, steps=0))

    def prompted(self, prepared: Prepared, task: Task, seed: int) -> Iterator[tuple[nn.Module, float, int]]:
        """The network behind each prompt that leaves room for a question as long as one of its examples."""
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


class Prompted(nn.Module):
    """A network that reads `examples`, each a row of tokens, before whatever it is given.

    Where a window of `length` is too short for all of them, the first are left out; padding counts, so that rows which
    are asked together have the same prompt. It takes and gives no cache: who shares prefixes has to do without.
    """

    def __init__(self, network: nn.Module, examples: Sequence[Sequence[int]], length: int | None) -> None:
        super().__init__()
        self.network, self.examples, self.length = network, [list(one) for one in examples], length

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0
    ) -> CausalLMOutput:
        """Logits at the last `logits_to_keep` positions of `input_ids` [rows, tokens], or at all of them."""
        width = input_ids.shape[1]
        prompt = input_ids.new_tensor(self.prompt(width))
        kept = logits_to_keep or width
        logits = []
        # As many tokens in a pass as the caller put into one, who knows nothing of the prompt.
        most = max(1, input_ids.numel() // (len(prompt) + width))
        for first in range(0, len(input_ids), most):
            rows = input_ids[first : first + most]
            before = prompt.expand(len(rows), -1)
            mask = None
            if attention_mask is not None:
                mask = attention_mask[first : first + most]
                mask = torch.cat([mask.new_ones(before.shape), mask], 1)
            whole = torch.cat([before, rows], 1)
            found = self.network(input_ids=whole, attention_mask=mask, use_cache=False, logits_to_keep=kept)
            logits.append(found.logits[:, -kept:])
        return CausalLMOutput(logits=torch.cat(logits))

    def prompt(self, width: int) -> list[int]:
        """The tokens before `width` others: the last examples for which there is room."""
        shown: list[int] = []
        for example in reversed(self.examples):
            if self.length is not None and len(example) + len(shown) + width > self.length:
                break
            shown = [*example, *shown]
        return shown


def solved(network: PreTrainedModel, task: Task, index: int) -> list[int]:
    """Question and answer of one training document, in tokens: what the network is shown to learn it, and the answer's
    last token, which it is not shown.

    Raises:
        NftbenchError: the task is not made of tokens.
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
    """What stands between examples: lm-eval's two line breaks, or the end of a document where a vocabulary has none."""
    if tokenizer is None:
        return []
    breaks: list[int] = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return breaks or [token for token in (tokenizer.eos_token_id,) if token is not None]
