"""Function-preserving rewrites: replace a network's weights by equivalent ones of ordinary size.

Different weights can compute the same function, but a gradient step depends on the weights. A defense could multiply a
norm's gain by a factor and divide the next layer's weights by it. No output would change, but every useful learning
rate would. `canonical` undoes this for causal LMs shaped like GPT-2, GPT-BigCode, Llama or Qwen3, and for DLR-locked
ones. Networks with other blocks stay as they are, and `unknown` says so. The rewrites, in this order:

- Gains and biases of norms are moved into the layers that read them (Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024,
  section 3).
- A layer norm subtracts the mean of its input, and its output has mean zero. Layers therefore no longer write a mean
  to the residual stream, nor read one from it.
- Biases without effect in attention are removed. A key's bias shifts all scores of a query equally, and a value's bias
  passes to the output unchanged.
- Hidden units that compute the same are merged, which removes branches that cancel. A unit that computes a constant is
  replaced by a bias. Weights that are multiplied by zeros, and could have any size, are given an ordinary size.
- The residual stream is rescaled so that the embeddings have root mean square 1 / sqrt(width), huge rows apart. The
  epsilon of every norm is rescaled with it.
- Pairs of layers whose product alone matters share it equally: M2·M1 = U S V becomes U S^½ and S^½ V. These are values
  and outputs of a head, queries and keys of a head, and the two linear factors of a gated unit. With rotary positions,
  queries and keys only allow one scale for each rotary pair. If they have norms, that scale lies in the norms' gains.

Computations are in float64, and each parameter keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTBigCodeForCausalLM, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Block
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeBlock, GPTBigCodeMLP
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from nftbench.models.architectures import dlr, two_layer
from nftbench.models.networks import seeded

SAME = 1e-6
"""Units whose inner weights have a smaller relative difference count as equal: a few rounding errors of float32."""
NOTHING = 1e-12
"""The remainder of parts that cancel counts as zero if it is smaller than this share of them. That is the rounding
error of float64, in which the parts are added; float32 numbers that cancel leave no remainder."""
LARGE = 10.0
"""A row of embeddings counts as at most this many times as large as the median row. In the trained `small` model the
largest is 4.4 times as large."""

# ------------------------------------------------------------------------------------------------------------ the parts


@dataclass(frozen=True)
class Affine:
    """A linear layer or part of one, as views of its parameters: weight [outputs, inputs] and bias [outputs]."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, layer: Any) -> Affine:
        weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(weight.mT if isinstance(layer, Conv1D) else weight, bias)

    def outputs(self, start: int, end: int) -> Affine:
        return Affine(self.weight[start:end], None if self.bias is None else self.bias[start:end])

    @property
    def table(self) -> Tensor:
        """A float64 copy of weight and bias side by side [outputs, inputs + 1], or of the weight alone."""
        weight = self.weight.double()
        return weight if self.bias is None else torch.cat([weight, self.bias.double()[:, None]], dim=1)

    def write(self, table: Tensor) -> None:
        width = self.weight.shape[1]
        self.weight.copy_(table[:, :width])
        if self.bias is not None:
            self.bias.copy_(table[:, width])

    def scale(self, factor: Tensor | float) -> None:
        """Multiply all outputs by one factor, or each by its own."""
        factor = torch.as_tensor(factor, dtype=torch.float64, device=self.weight.device)
        self.write(self.table * (factor[:, None] if factor.ndim else factor))


@dataclass(frozen=True)
class Attention:
    """Attention with heads of width `size`.

    Groups of query heads share a head of keys and values. `norms` are the norms of queries and keys, if there are any.
    """

    query: Affine
    key: Affine
    value: Affine
    output: Affine
    size: int
    rotary: bool
    norms: tuple[nn.Module, nn.Module] | None = None

    @property
    def key_heads(self) -> int:
        return len(self.key.weight) // self.size

    @property
    def group(self) -> int:
        """Query heads for each key head."""
        return len(self.query.weight) // len(self.key.weight)


@dataclass(frozen=True)
class Units:
    """Hidden units φ(inner) · linear, or φ(inner) alone, and the layer `output` that reads them; φ is `activation`."""

    activation: Callable[[Tensor], Tensor]
    inner: Affine
    output: Affine
    linear: Affine | None = None

    @property
    def read(self) -> list[Affine]:
        return [self.inner] if self.linear is None else [self.inner, self.linear]


@dataclass(frozen=True)
class Block:
    """A transformer block. `units` are those of its MLP, or of the low-rank blocks of the DLR-Net `chain`."""

    attention: Attention
    attention_norm: nn.Module
    units: tuple[Units, ...]
    units_norm: nn.Module
    chain: dlr.DlrNet | None = None

    def writers(self) -> Iterator[Affine]:
        yield self.attention.output
        yield from (units.output for units in self.units)

    def norms(self) -> Iterator[nn.Module]:
        """The norms that read the residual stream, and those that read the inner stream of a DLR-Net."""
        yield from (self.attention_norm, self.units_norm)
        if self.chain is not None:
            yield from (block.norm for block in self.chain.blocks)  # type: ignore[misc]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM. `positions` are learned position embeddings; `head` is None if tied to `words`."""

    words: Tensor
    positions: Tensor | None
    blocks: tuple[Block, ...]
    final: nn.Module
    head: Affine | None

    @property
    def centred(self) -> bool:
        """Whether the norms subtract the mean of their inputs."""
        return isinstance(self.final, nn.LayerNorm)


def anatomy(network: PreTrainedModel) -> Anatomy | None:
    """The parts of a network, or None if one of its blocks or its last norm is of an unknown class.

    GPT-BigCode with keys and values for every head, and a two-layer model, have parts only after `as_gpt2`.
    """
    if _is_interleaved(network) or two_layer.is_factored(network):
        return None
    decoder, head = network.base_model, network.get_output_embeddings()
    if hasattr(decoder, "h") and all(isinstance(block, GPT2Block | GPTBigCodeBlock) for block in decoder.h):
        blocks, final, positions = [_gpt2(block) for block in decoder.h], decoder.ln_f, decoder.wpe.weight.detach()
    elif hasattr(decoder, "layers") and all(
        isinstance(b, LlamaDecoderLayer | Qwen3DecoderLayer) for b in decoder.layers
    ):
        blocks, final, positions = [_llama(block) for block in decoder.layers], decoder.norm, None
    else:
        return None
    if not isinstance(final, nn.LayerNorm | LlamaRMSNorm | Qwen3RMSNorm):
        return None
    words = network.get_input_embeddings().weight
    untied = None if head.weight is words else Affine.of(head)
    return Anatomy(words.detach(), positions, tuple(blocks), final, untied)


def _gpt2(block: Any) -> Block:
    whole, width = Affine.of(block.attn.c_attn), block.attn.embed_dim
    shared = (len(whole.weight) - width) // 2  # of keys, and of values; GPT-BigCode may have one head of them
    query, key = whole.outputs(0, width), whole.outputs(width, width + shared)
    value = whole.outputs(width + shared, width + 2 * shared)
    attention = Attention(query, key, value, Affine.of(block.attn.c_proj), block.attn.head_dim, rotary=False)
    if isinstance(block.mlp, dlr.DlrNet):
        return Block(attention, block.ln_1, _low_rank(block.mlp), block.ln_2, block.mlp)
    assert isinstance(block.mlp, GPT2MLP | GPTBigCodeMLP)
    units = Units(block.mlp.act, Affine.of(block.mlp.c_fc), Affine.of(block.mlp.c_proj))
    return Block(attention, block.ln_1, (units,), block.ln_2)


def _llama(block: Any) -> Block:
    own = block.self_attn
    norms = (own.q_norm, own.k_norm) if hasattr(own, "q_norm") else None
    query, key, value, output = (Affine.of(layer) for layer in (own.q_proj, own.k_proj, own.v_proj, own.o_proj))
    attention = Attention(query, key, value, output, own.head_dim, rotary=True, norms=norms)
    first, second = block.input_layernorm, block.post_attention_layernorm
    if isinstance(block.mlp, dlr.DlrNet):
        return Block(attention, first, _low_rank(block.mlp), second, block.mlp)
    inner, linear, output = (
        Affine.of(layer) for layer in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)
    )
    return Block(attention, first, (Units(block.mlp.act_fn, inner, output, linear),), second)


def _low_rank(chain: dlr.DlrNet) -> tuple[Units, ...]:
    return tuple(
        Units(block.activation, Affine.of(block.down), Affine.of(block.up))  # type: ignore[arg-type]
        for block in chain.blocks
    )


# ------------------------------------------------------------------------------------------------------------- together


def unknown(network: PreTrainedModel) -> str | None:
    """Why a network cannot be rewritten; None where it can, by `canonical` after `as_gpt2`."""
    if anatomy(network) is not None or _is_interleaved(network) or two_layer.is_factored(network):
        return None
    return f"no rewrite is known for blocks as in {network.config.model_type}"


@torch.no_grad()
def canonical(network: PreTrainedModel) -> None:
    """Apply all rewrites of the module's docstring in place. The logits do not change, up to rounding."""
    found = anatomy(network)
    if found is None:
        return
    fold_norms(found)
    center(found)
    for block in found.blocks:
        drop_biases(block.attention)
        for units in block.units:
            merge_units(units)
            fold_constants(units)
    scale_stream(found, 1 / (_size(found.words) * found.words.shape[1] ** 0.5))
    for block in found.blocks:
        balance_values(block.attention)
        balance_scores(block.attention)
        for units in block.units:
            balance_units(units)


@torch.no_grad()
def as_gpt2(network: PreTrainedModel) -> PreTrainedModel:
    """GPT-BigCode with keys and values for every head as the GPT-2 that computes the same; others as they are.

    GPT-BigCode holds queries, keys and values head by head in one layer, GPT-2 first all queries. A two-layer model
    becomes the standard model of its family, GPT-2 or not: its pairs of layers are multiplied out.
    """
    network = two_layer.fused(network)
    if not _is_interleaved(network):
        return network
    settings = {name: value for name, value in network.config.to_dict().items() if name != "model_type"}
    config = GPT2Config.from_dict(settings)
    config._attn_implementation = network.config._attn_implementation
    with seeded(0):  # weights are drawn, and overwritten
        found = GPT2LMHeadModel(config).to(device=network.device, dtype=network.dtype)
    attention = network.base_model.h[0].attn
    order = torch.arange(3 * attention.embed_dim).view(attention.num_heads, 3, -1).transpose(0, 1).flatten()
    weights = network.state_dict()
    for name in weights:
        if "c_attn" in name:
            weights[name] = weights[name][order]
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weights[name] = weights[name].mT
    found.load_state_dict(weights)
    return found.train(network.training)


def _is_interleaved(network: PreTrainedModel) -> bool:
    return type(network) is GPTBigCodeForCausalLM and not network.config.multi_query


@torch.no_grad()
def scale_logits(network: PreTrainedModel, factor: float) -> None:
    """Multiply all logits by scaling the head, or the norm before it if the head is tied to the embeddings."""
    found = anatomy(network)
    if found is None:
        return
    if found.head is not None:
        found.head.scale(factor)
    else:
        _scale_norm(found.final, factor)


# ---------------------------------------------------------------------------------------------------------------- norms


def fold_norms(network: Anatomy) -> None:
    """Set the gains of norms to 1 and their biases to 0, and change the layers that read them accordingly.

    A norm is not changed if it is read by another norm (in a DLR-Net) or by a head that is tied to the embeddings.
    """
    for block in network.blocks:
        attention = block.attention
        _fold(block.attention_norm, [attention.query, attention.key, attention.value])
        if block.chain is None:
            _fold(block.units_norm, block.units[0].read)
    if network.head is not None:
        _fold(network.final, [network.head])


def _fold(norm: Any, readers: Sequence[Affine]) -> None:
    gain, bias = norm.weight.double(), getattr(norm, "bias", None)
    taken = bias is None or all(reader.bias is not None for reader in readers)
    # If a reader has no bias to absorb the norm's bias, the norm keeps its bias, divided by the gain (1 in place of 0).
    gain = gain if taken else torch.where(gain == 0, 1.0, gain)
    for reader in readers:
        if reader.bias is not None and bias is not None:
            reader.bias.add_(reader.weight.double() @ bias.double())
        reader.weight.copy_(reader.weight.double() * gain)
    if taken:
        norm.weight.fill_(1.0)
    else:
        norm.weight.copy_(norm.weight.double() / gain)
    if bias is not None:
        bias.copy_(torch.zeros_like(bias) if taken else bias.double() / gain)


def center(network: Anatomy) -> None:
    """Remove the mean that layers write to the residual stream or read from it. Layer norms subtract it anyway."""
    if not network.centred:
        return
    for block in network.blocks:
        attention = block.attention
        readers, writers = [attention.query, attention.key, attention.value], [attention.output]
        if block.chain is None:
            readers, writers = [*readers, *block.units[0].read], [*writers, block.units[0].output]
        for reader in readers:
            reader.weight.sub_(reader.weight.mean(1, keepdim=True))
        for writer in writers:
            writer.write(writer.table - writer.table.mean(0, keepdim=True))
    tables = [network.positions, network.words if network.head is not None else None]
    for table in filter(lambda table: table is not None, tables):
        table.sub_(table.mean(1, keepdim=True))  # type: ignore[union-attr]


def scale_stream(network: Anatomy, factor: float) -> None:
    """Multiply everything that is written to the residual stream. The norms that read it cancel the factor.

    A norm's epsilon is multiplied by factor². The inner stream of a DLR-Net begins at the norm before it, which is
    therefore scaled as well. If the head is tied to the embeddings, the last norm is divided by the factor.
    """
    for table in (network.words, network.positions):
        if table is not None:
            table.mul_(factor)
    for block in network.blocks:
        for writer in block.writers():
            writer.scale(factor)
        for norm in block.norms():
            _scale_epsilon(norm, factor**2)
        if block.chain is not None:
            _scale_norm(block.units_norm, factor)
    _scale_epsilon(network.final, factor**2)
    if network.head is None:
        _scale_norm(network.final, 1 / factor)


def _scale_norm(norm: Any, factor: float) -> None:
    norm.weight.mul_(factor)
    if getattr(norm, "bias", None) is not None:
        norm.bias.mul_(factor)


def _scale_epsilon(norm: Any, factor: float) -> None:
    name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
    setattr(norm, name, getattr(norm, name) * factor)


# ------------------------------------------------------------------------------------------------------------ attention


def drop_biases(attention: Attention) -> None:
    """Remove biases without effect. A key's bias shifts all scores of a query equally.

    Attention weights sum to 1, so that a value's bias can be moved to the output's bias.
    """
    key, value, output = attention.key, attention.value, attention.output
    if key.bias is not None and not attention.rotary:
        key.bias.zero_()
    if value.bias is not None and output.bias is not None:
        heads = value.bias.double().view(attention.key_heads, 1, -1).expand(-1, attention.group, -1)
        output.bias.add_(output.weight.double() @ heads.flatten())
        value.bias.zero_()


def balance_values(attention: Attention) -> None:
    """Balance values and outputs in each head. The outputs of a group share the values."""
    for head in range(attention.key_heads):
        value = attention.value.outputs(head * attention.size, (head + 1) * attention.size)
        columns = attention.group * attention.size
        output = attention.output.weight[:, head * columns : (head + 1) * columns]
        stacked = output.double().view(len(output), attention.group, attention.size).transpose(0, 1).flatten(0, 1)
        first, second = balanced(value.table, stacked)
        value.write(first)
        output.copy_(second.view(attention.group, len(output), attention.size).transpose(0, 1).flatten(1))


def balance_scores(attention: Attention) -> None:
    """Balance queries and keys in each head, or in their norms if they have any."""
    query, key, size = attention.query, attention.key, attention.size
    if attention.norms is not None:
        _balance_pairs([norm.weight.detach()[:, None] for norm in attention.norms])  # type: ignore[operator]
        for part, norm in zip((query, key), attention.norms, strict=True):
            if not bool(part.table.any()):
                continue
            factor = 1 / (_size(part.table) * part.weight.shape[1] ** 0.5)
            part.scale(factor)
            _scale_epsilon(norm, factor**2)
        return
    for head in range(attention.key_heads):
        own = query.outputs(head * attention.group * size, (head + 1) * attention.group * size)
        keys = key.outputs(head * size, (head + 1) * size)
        if attention.rotary:
            tables = own.table.view(attention.group, size, -1).transpose(0, 1).flatten(1), keys.table
            _balance_pairs(tables)
            own.write(tables[0].view(size, attention.group, -1).transpose(0, 1).flatten(0, 1))
            keys.write(tables[1])
        else:
            stacked = own.table.view(attention.group, size, -1).transpose(0, 1).flatten(1)
            first, second = balanced(stacked, keys.table.mT)
            own.write(first.view(size, attention.group, -1).transpose(0, 1).flatten(0, 1))
            keys.write(second.mT)


def _balance_pairs(tables: Sequence[Tensor]) -> None:
    """Give the rows of two tables [size, …] equal norms; rows i and i + size / 2 are a rotary pair with one factor."""
    norms = [table.double().square().sum(1).view(2, -1).sum(0).sqrt().repeat(2) for table in tables]
    factor, whole = _factor(*norms)[:, None], ((norms[0] > 0) & (norms[1] > 0))[:, None]
    tables[0].copy_(torch.where(whole, tables[0].double() * factor, _ordinary(tables[0].double())))
    tables[1].copy_(torch.where(whole, tables[1].double() / factor, _ordinary(tables[1].double())))


# ---------------------------------------------------------------------------------------------------------------- units


def merge_units(units: Units) -> None:
    """Merge units with the same inner weights into as few as possible. The others get weights of zero.

    Without a linear factor one unit suffices, with the sum of the output weights. With linear factors, k such units
    write φ(inner) times a linear map of rank at most k, and as many units as its rank remain.
    """
    inner, output = units.inner.table, units.output.weight.double()
    linear = None if units.linear is None else units.linear.table
    for group in _twins(inner):
        columns = output[:, group]
        if linear is None:
            total, size = columns.sum(1), columns.norm()
            columns = nn.functional.pad(total[:, None], (0, len(group) - 1))
            kept = int(total.norm() > NOTHING * size)
        else:
            size = linear[group].norm() * columns.norm()
            linear[group], columns = balanced(linear[group], columns)
            kept = int((columns.square().sum(0) > NOTHING * size).sum())
            linear[group[kept:]] = 0
        columns[:, kept:] = 0
        output[:, group] = columns
        inner[group[kept:]] = 0
    units.inner.write(inner)
    units.output.weight.copy_(output)
    if units.linear is not None and linear is not None:
        units.linear.write(linear)


def fold_constants(units: Units) -> None:
    """Replace units with a constant value by a bias of the output, and set their weights to zero.

    If the output has no bias, only units with the value zero are removed. The inner weights of a unit whose output
    weights are zero do not matter until a training step changes these. They are given an ordinary size, like the rest.
    """
    factors = [units.activation(_bias(units.inner)), *(_bias(one) for one in units.read[1:])]
    fixed = [~one.weight.any(1) for one in units.read]
    value = torch.stack(factors).prod(0)
    nothing = torch.stack([still & (one == 0) for still, one in zip(fixed, factors, strict=True)]).any(0)
    constant = nothing if units.output.bias is None else torch.stack(fixed).all(0) | nothing
    if units.output.bias is not None:
        units.output.bias.add_(units.output.weight[:, constant].double() @ value[constant])
    units.output.weight[:, constant] = 0
    silent = ~units.output.weight.any(0)[:, None]
    for reader in units.read:
        reader.write(torch.where(silent, _ordinary(reader.table), reader.table) * ~constant[:, None])


def _bias(layer: Affine) -> Tensor:
    zeros = layer.weight.new_zeros(len(layer.weight), dtype=torch.float64)
    return zeros if layer.bias is None else layer.bias.double()


def balance_units(units: Units) -> None:
    """Give the linear factor and the output weights of each gated unit the same norm."""
    if units.linear is None:
        return
    table, output = units.linear.table, units.output.weight.double()
    factor = _factor(table.norm(dim=1), output.norm(dim=0))
    units.linear.write(table * factor[:, None])
    units.output.weight.copy_(output / factor)


def _twins(table: Tensor) -> list[list[int]]:
    """Groups of two or more equal rows of a table [rows, columns]. Rows of zeros form no group."""
    direction = torch.cos(torch.arange(table.shape[1], dtype=table.dtype, device=table.device))
    places = (table @ direction).sort()
    sizes, found = table.norm(dim=1), []
    near = (places.values.diff() <= SAME * (sizes[places.indices][1:] * direction.norm())).tolist()
    run: list[int] = []
    for row, follows in zip(places.indices.tolist(), [*near, False], strict=True):
        run.append(row)
        if not follows:
            found += _groups(table, sizes, run) if len(run) > 1 else []
            run = []
    return found


def _groups(table: Tensor, sizes: Tensor, rows: Sequence[int]) -> list[list[int]]:
    """The groups among candidate rows, by comparing all pairs."""
    left, found = [row for row in sorted(rows) if float(sizes[row]) > 0], []
    while left:
        distances = (table[left] - table[left[0]]).norm(dim=1)
        same = [row for row, far in zip(left, distances.tolist(), strict=True) if far <= SAME * float(sizes[left[0]])]
        left = [row for row in left if row not in same]
        found += [same] if len(same) > 1 else []
    return found


# -------------------------------------------------------------------------------------------------------------- numbers


def balanced(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`first` [k, m] and `second` [n, k] with the same product [n, m] = U S V, as S^½ V and U S^½.

    A direction in which the product is zero keeps a row of mean size in `first`, and zeros in `second`. With zeros on
    both sides it would never receive a gradient. If the whole product is zero, both get rows of ordinary size.
    """
    (left, upper), (right, lower) = torch.linalg.qr(second), torch.linalg.qr(first.mT)
    turned, values, rows = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    if not bool(values[0] > 0):
        return _ordinary(first), _ordinary(second.mT).mT
    roots = values.sqrt()
    lost = values <= len(values) * torch.finfo(values.dtype).eps * values[0]
    rows = torch.where(lost, roots.mean(), roots)[:, None] * (rows @ right.mT)
    columns = (left @ turned) * torch.where(lost, 0.0, roots)
    beyond = len(first) - len(values)  # a product of [n, m] has no more directions than n or m
    return nn.functional.pad(rows, (0, 0, 0, beyond)), nn.functional.pad(columns, (0, beyond))


def _factor(first: Tensor, second: Tensor) -> Tensor:
    """The factor that makes two norms equal if it multiplies the first and divides the second; 1 if one is zero."""
    there = (first > 0) & (second > 0)
    return torch.where(there, (second / torch.where(there, first, 1.0)).sqrt(), 1.0)


def _ordinary(table: Tensor) -> Tensor:
    """The table with rows scaled down to a norm of at most 1. Its product with a normalised stream is of order 1."""
    norms: Tensor = table.norm(dim=1, keepdim=True)
    return table / norms.clamp_min(1.0)


def _size(table: Tensor) -> float:
    """The root mean square over the rows that are not zero; none counts as larger than `LARGE` times the median.

    The row of a word that no text uses could be of any size.
    """
    sizes = table.double().square().mean(1).sqrt()
    sizes = sizes[sizes > 0]
    return float(sizes.clamp(max=LARGE * sizes.median()).square().mean().sqrt())
