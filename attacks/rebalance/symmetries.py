"""Function-preserving rewrites: one network of all those that compute the same outputs, with weights of ordinary size.

Many weights give one function, and a gradient step goes by the weights: who scales a norm up and what reads it down
has changed no output and every useful learning rate. `canonical` undoes that for GPT-2-, Llama- and Qwen3-shaped causal
LMs, and for what a DLR-lock leaves of them; a network with blocks of another kind stays as it is. In this order:

- norms hand their gain and bias on to what reads them (Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024, section 3);
- what a layer norm takes out of its input, its mean, is no longer written, and what it never gives is no longer read;
- biases that attention cannot tell from none are dropped: a key's shifts all scores alike, a value's goes straight
  through to the output;
- hidden units that compute the same are merged into one, so that branches that cancel are gone; one that computes a
  constant hands it on to the bias; what is multiplied by zeros, and so of any size, gets an ordinary one;
- the whole residual stream gets embeddings of root mean square 1 / sqrt(width); every norm's epsilon goes along;
- pairs of layers of which only the product counts get equal parts of it, M2·M1 = U S V as U S^½ and S^½ V: values and
  outputs within a head, queries and keys within a head, the two linear factors of a gated unit. Between queries and
  keys that turn with their position only a scale for each rotary pair commutes; between those with norms of their own
  that scale sits in the gains.

What is computed is computed in float64; what is written keeps each parameter's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from nftbench.methods import dlr

SAME = 1e-6
"""Units whose inner weights differ by less than this share are one unit: a few roundings of float32."""
NOTHING = 1e-12
"""What is left of parts that cancel is nothing below this share of them: roundings of float64, since cancelling numbers
of float32 leave nothing at all."""

# ------------------------------------------------------------------------------------------------------------ the parts


@dataclass(frozen=True)
class Affine:
    """A linear layer or a part of one: views into its parameters, weight [outputs, inputs] and bias [outputs]."""

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
        """Weight and bias side by side [outputs, inputs + 1], or the weight alone; a copy in float64."""
        weight = self.weight.double()
        return weight if self.bias is None else torch.cat([weight, self.bias.double()[:, None]], dim=1)

    def write(self, table: Tensor) -> None:
        width = self.weight.shape[1]
        self.weight.copy_(table[:, :width])
        if self.bias is not None:
            self.bias.copy_(table[:, width])

    def scale(self, factor: Tensor | float) -> None:
        """Multiply the outputs, all by one number or each by its own."""
        factor = torch.as_tensor(factor, dtype=torch.float64, device=self.weight.device)
        self.write(self.table * (factor[:, None] if factor.ndim else factor))


@dataclass(frozen=True)
class Attention:
    """Heads of `size`; query heads share a key and value head in groups. `norms` are those on queries and keys."""

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
    """Hidden units φ(inner) · linear, or φ(inner) alone, and what they write; `activation` is φ."""

    activation: Callable[[Tensor], Tensor]
    inner: Affine
    output: Affine
    linear: Affine | None = None

    @property
    def read(self) -> list[Affine]:
        return [self.inner] if self.linear is None else [self.inner, self.linear]


@dataclass(frozen=True)
class Block:
    """A transformer block; `units` are its MLP, or those of a DLR-Net's blocks, in whose place `chain` stands."""

    attention: Attention
    attention_norm: nn.Module
    units: tuple[Units, ...]
    units_norm: nn.Module
    chain: dlr.DlrNet | None = None

    def writers(self) -> Iterator[Affine]:
        yield self.attention.output
        yield from (units.output for units in self.units)

    def norms(self) -> Iterator[nn.Module]:
        """The norms that read the stream, or in a DLR-Net a stream of its own."""
        yield from (self.attention_norm, self.units_norm)
        if self.chain is not None:
            yield from (block.norm for block in self.chain.blocks)  # type: ignore[misc]


@dataclass(frozen=True)
class Anatomy:
    """A causal LM taken apart. `positions` is the table of learned positions, `head` None where tied to `words`."""

    words: Tensor
    positions: Tensor | None
    blocks: tuple[Block, ...]
    final: nn.Module
    head: Affine | None

    @property
    def centred(self) -> bool:
        """Whether the norms take the mean out of what they read."""
        return isinstance(self.final, nn.LayerNorm)


def anatomy(network: PreTrainedModel) -> Anatomy | None:
    """The parts of a network whose blocks and last norm are all known; None for any other."""
    decoder, head = network.base_model, network.get_output_embeddings()
    if hasattr(decoder, "h") and all(isinstance(block, GPT2Block) for block in decoder.h):
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
    query, key, value = (whole.outputs(start, start + width) for start in range(0, 3 * width, width))
    attention = Attention(query, key, value, Affine.of(block.attn.c_proj), block.attn.head_dim, rotary=False)
    if isinstance(block.mlp, dlr.DlrNet):
        return Block(attention, block.ln_1, _low_rank(block.mlp), block.ln_2, block.mlp)
    assert isinstance(block.mlp, GPT2MLP)
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


@torch.no_grad()
def canonical(network: PreTrainedModel) -> None:
    """Rewrite the network in place by all of the above; its logits stay as they are, up to rounding."""
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
def scale_logits(network: PreTrainedModel, factor: float) -> None:
    """Multiply all logits: by way of the head, or of the norm before it where the head is the embeddings."""
    found = anatomy(network)
    if found is None:
        return
    if found.head is not None:
        found.head.scale(factor)
    else:
        _scale_norm(found.final, factor)


# ---------------------------------------------------------------------------------------------------------------- norms


def fold_norms(network: Anatomy) -> None:
    """Gains become 1 and biases 0, and what reads the norm does the same to its input.

    A norm whose reader has another norm first (a DLR-Net) or is tied to the embeddings keeps what it has.
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
    # Where readers have no bias to add it to, the norm's stays and is divided, and so must be what is nothing.
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
    """Between layer norms without gain and bias nothing is written to, or read from, the mean of the stream."""
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
    """Multiply all that is written to the residual stream, whose readers are norms and see no difference.

    A norm sees its epsilon, which is multiplied by factor². The stream inside of a DLR-Net begins at the norm before
    it, which therefore takes part. Where the head is the embeddings, the last norm takes the factor back.
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
    """Without the biases that change nothing: scores of one query all move by a key's, and weights sum to 1."""
    key, value, output = attention.key, attention.value, attention.output
    if key.bias is not None and not attention.rotary:
        key.bias.zero_()
    if value.bias is not None and output.bias is not None:
        heads = value.bias.double().view(attention.key_heads, 1, -1).expand(-1, attention.group, -1)
        output.bias.add_(output.weight.double() @ heads.flatten())
        value.bias.zero_()


def balance_values(attention: Attention) -> None:
    """Values and outputs, head by head; those of a group share the values."""
    for head in range(attention.key_heads):
        value = attention.value.outputs(head * attention.size, (head + 1) * attention.size)
        columns = attention.group * attention.size
        output = attention.output.weight[:, head * columns : (head + 1) * columns]
        stacked = output.double().view(len(output), attention.group, attention.size).transpose(0, 1).flatten(0, 1)
        first, second = balanced(value.table, stacked)
        value.write(first)
        output.copy_(second.view(attention.group, len(output), attention.size).transpose(0, 1).flatten(1))


def balance_scores(attention: Attention) -> None:
    """Queries and keys, head by head."""
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
            first, second = balanced(own.table, keys.table.mT)
            own.write(first)
            keys.write(second.mT)


def _balance_pairs(tables: Sequence[Tensor]) -> None:
    """Scale the rows of two tables [size, …] against each other; rows i and i + size / 2 turn together."""
    norms = [table.double().square().sum(1).view(2, -1).sum(0).sqrt().repeat(2) for table in tables]
    factor, whole = _factor(*norms)[:, None], ((norms[0] > 0) & (norms[1] > 0))[:, None]
    tables[0].copy_(torch.where(whole, tables[0].double() * factor, _ordinary(tables[0].double())))
    tables[1].copy_(torch.where(whole, tables[1].double() / factor, _ordinary(tables[1].double())))


# ---------------------------------------------------------------------------------------------------------------- units


def merge_units(units: Units) -> None:
    """Units with the same inner weights become as few as can do the same; those left over get weights of zero.

    Without a linear factor one unit does, and writes the sum. With one, k such units write φ(inner) times a linear map
    of rank at most k, and as many are left as it has ranks.
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
    """Units that read nothing always write the same, which the output's bias may as well; theirs become zeros.

    Without that bias only those go that write nothing. What a unit reads that writes nothing is never seen, until a
    step of training lets it write: it gets an ordinary size, like the rest.
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
    """The linear factor of each gated unit and what the unit writes get the same norm."""
    if units.linear is None:
        return
    table, output = units.linear.table, units.output.weight.double()
    factor = _factor(table.norm(dim=1), output.norm(dim=0))
    units.linear.write(table * factor[:, None])
    units.output.weight.copy_(output / factor)


def _twins(table: Tensor) -> list[list[int]]:
    """Groups of two or more equal rows of a table [rows, columns]; rows of zeros are no group."""
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
    """The same among a few rows that may be equal."""
    left, found = [row for row in sorted(rows) if float(sizes[row]) > 0], []
    while left:
        distances = (table[left] - table[left[0]]).norm(dim=1)
        same = [row for row, far in zip(left, distances.tolist(), strict=True) if far <= SAME * float(sizes[left[0]])]
        left = [row for row in left if row not in same]
        found += [same] if len(same) > 1 else []
    return found


# -------------------------------------------------------------------------------------------------------------- numbers


def balanced(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`first` [k, m] and `second` [n, k] rewritten: the same product [n, m] = U S V, as U S^½ and S^½ V.

    A direction that the product lacks keeps a row of `first`, of mean size, against zeros in `second`: zeros on both
    sides would never get a gradient again. Of two layers whose product is nothing, what is there gets an ordinary size.
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
    """What multiplies the first and divides the second so that their norms are equal; 1 where one is zero."""
    there = (first > 0) & (second > 0)
    return torch.where(there, (second / torch.where(there, first, 1.0)).sqrt(), 1.0)


def _ordinary(table: Tensor) -> Tensor:
    """Rows with a norm of at most 1: what one makes of a normed stream, of norm √width, is then of order 1."""
    norms: Tensor = table.norm(dim=1, keepdim=True)
    return table / norms.clamp_min(1.0)


def _size(table: Tensor) -> float:
    """Root mean square of the rows that are not zero."""
    values = table.double()
    values = values[values.any(1)]
    return float(values.square().mean().sqrt())
