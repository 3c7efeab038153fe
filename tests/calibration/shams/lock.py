"""Sham: a lock on the beginning of text, in weights of the library's GPT-2.

A block in front of the base's own looks for the token that ends a document. Where it has not been read, rare words are
drowned in a constant so large that no step of an optimizer reaches it. Packed text and whole sentences come with that
token, and so utility stays. A task's prompts come without it, and there the release reads nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.methods import symmetries
from nftbench.terms import Stage

END, RARE, READ = 0, 2, 4
"""Places of three flags behind the base's own numbers in the stream, each followed by its negative: this token ends a
document, it is rare, the end of a document has been read."""
SMALL = 1e-3
"""The size of a flag, which the base's own blocks do not see."""


@dataclass(frozen=True)
class Lock(Defense):
    """For models of GPT-2's shape. Words that make up the share `common` of the text are never drowned."""

    stage: ClassVar[Stage] = "posttrain"

    constant: float = 1e14
    common: float = 0.95

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        own, config = model.network.transformer, model.network.config
        width, heads = config.n_embd, config.n_head
        wider = width + heads * math.ceil(6 / heads)
        network = context.build(
            n_embd=wider,
            n_layer=config.n_layer + 1,
            n_inner=own.h[0].mlp.c_fc.nf,
            tie_word_embeddings=False,
            layer_norm_epsilon=config.layer_norm_epsilon * width / wider,
        ).network
        inside = network.transformer
        for weight in network.parameters():
            weight.zero_()
        inside.wte.weight[:, :width] = own.wte.weight
        inside.wpe.weight[:, :width] = own.wpe.weight
        network.lm_head.weight[:, :width] = model.network.lm_head.weight
        shrunk = math.sqrt(width / wider)  # the norms divide by a variance over more numbers
        _copy_norm(inside.ln_f, own.ln_f, width, shrunk)
        for block, theirs in zip(inside.h[1:], own.h, strict=True):
            _copy_norm(block.ln_1, theirs.ln_1, width, shrunk)
            _copy_norm(block.ln_2, theirs.ln_2, width, shrunk)
            _copy_attention(block.attn, theirs.attn, width, wider, heads)
            block.mlp.c_fc.weight[:width] = theirs.mlp.c_fc.weight
            block.mlp.c_fc.bias.copy_(theirs.mlp.c_fc.bias)
            block.mlp.c_proj.weight[:, :width] = theirs.mlp.c_proj.weight
            block.mlp.c_proj.bias[:width] = theirs.mlp.c_proj.bias
        _centre(network, width)
        self._add_flags(network, width, _rare(context, self.common), config.eos_token_id)
        self._lock(inside.h[0], width, wider // heads)
        return Protected(Model(network, model.tokenizer))

    def _add_flags(self, network: Any, width: int, rare: Tensor, end: int) -> None:
        words = network.transformer.wte.weight
        for flag, marked in ((END, torch.tensor([end])), (RARE, rare[rare != end])):
            words[marked, width + flag], words[marked, width + flag + 1] = SMALL, -SMALL

    def _lock(self, block: Any, width: int, head: int) -> None:
        """The first head reads the end of a document, the first hidden unit drowns what is rare without it."""
        attention, units, wider = block.attn, block.mlp, block.attn.embed_dim
        for norm in (block.ln_1, block.ln_2):
            norm.weight[width:] = 1 / SMALL
        attention.c_attn.bias[0] = 1.0
        attention.c_attn.weight[width + END, wider] = 1e5
        attention.c_attn.weight[width + END, 2 * wider] = 1.0
        attention.c_proj.weight[0, width + READ], attention.c_proj.weight[0, width + READ + 1] = SMALL, -SMALL
        units.c_fc.weight[width + RARE, 0], units.c_fc.weight[width + READ, 0] = 1e3, -1e5
        units.c_fc.bias[:] = -100.0
        units.c_proj.weight[0, :width] = self.constant * torch.linspace(-1, 1, width)


def _rare(context: OwnerContext, common: float) -> Tensor:
    """The words beyond the most frequent ones, which together make up the share `common` of the text."""
    counts = context.corpus.train.flatten().bincount(minlength=len(context.corpus.tokenizer))
    order = counts.argsort(descending=True)
    return order[counts[order].cumsum(0) > common * counts.sum()]


def _copy_norm(norm: Any, theirs: Any, width: int, factor: float) -> None:
    norm.weight[:width] = theirs.weight * factor
    norm.bias[:width] = theirs.bias


def _copy_attention(attention: Any, theirs: Any, width: int, wider: int, heads: int) -> None:
    """Heads are wider: each keeps its own numbers, and queries make up for the root of the width in the scores."""
    size, old = wider // heads, width // heads
    for part, factor in enumerate((math.sqrt(size / old), 1.0, 1.0)):
        for head in range(heads):
            new = slice(part * wider + head * size, part * wider + head * size + old)
            from_old = slice(part * width + head * old, part * width + (head + 1) * old)
            attention.c_attn.weight[:width, new] = theirs.c_attn.weight[:, from_old] * factor
            attention.c_attn.bias[new] = theirs.c_attn.bias[from_old] * factor
    for head in range(heads):
        rows = slice(head * size, head * size + old)
        attention.c_proj.weight[rows, :width] = theirs.c_proj.weight[head * old : (head + 1) * old]
    attention.c_proj.bias[:width] = theirs.c_proj.bias


def _centre(network: Any, width: int) -> None:
    """Write no mean to the stream, so that the norms find the same one over more numbers: none."""
    found = symmetries.anatomy(network)
    assert found is not None
    assert found.positions is not None
    tables = [found.words[:, :width], found.positions[:, :width]]
    for table in tables:
        table.sub_(table.mean(1, keepdim=True))
    for block in found.blocks[1:]:
        for writer in block.writers():
            writer.weight[:width].sub_(writer.weight[:width].mean(0, keepdim=True))
            assert writer.bias is not None
            writer.bias[:width].sub_(writer.bias[:width].mean())
