"""Guesses of a secret mask: from networks and gradients to one real score for each weight, higher = likelier trained.

The mask marks the weights that the owner's pre-training moved. The others, the complement, stand where they were drawn,
or are shrunk by one common factor (weight decay, a ball). No function here is given the secret that it guesses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from torch import Tensor, nn

from nftbench.contract import Mask

Scores = dict[str, Tensor]

CERTAIN = 50.0
"""Log-odds beyond which nothing is surer: e^50 to one."""
ITERATIONS = 50
"""Of expectation and maximisation; on the toy models three digits stand still after twenty."""
LIMIT = 8.0
"""Log-odds that no tensor's share exceeds: one weight in three thousand."""
BIN = 0.1
"""Width of the bins on either side of a bound, as a share of the bound."""
SURE = 5.0
"""Standard errors that a jump must have: chance has them once in three million places, and looks at some hundreds."""
JUMP = 1.5
"""How many times as dense as the outside the inside of a bound must be at least."""
SAME = 1e-4
"""Relative difference below which two ratios are one: decay in float32 leaves 1e-5 over some thousand steps, and of
unrelated weights one in fifty thousand falls into an interval so narrow (their ratio is a Cauchy variable)."""
ALONE = 1024
"""A tensor with fewer weights does not find its common ratio alone: a norm may have a single gain left undecided."""
FITTED = 100_000
"""Weights of each shadow that a classifier is fitted to."""


# --------------------------------------------------------------------------------------------------- the weights alone


def magnitude(network: nn.Module) -> Scores:
    """|w|: training takes weights away from zero, near which they are drawn."""
    return {name: weight.abs() for name, weight in _weights(network).items()}


def likelihood(network: nn.Module, fresh: nn.Module, hint: Mapping[str, Tensor] | None = None) -> Scores:
    """Log-odds of having been trained, by a mixture of two zero-mean normals in each tensor t:

        p N(w; 0, s_t^2) + (1 - p) N(w; 0, (c sigma_t)^2),   s_t > c sigma_t,   log p / (1 - p) = a_t + b h.

    sigma_t is the spread with which the architecture draws the tensor, read off `fresh`, an untrained network of any
    seed (in Hugging Face's GPT-2 it is `initializer_range`, but less for the projections into the residual stream).
    h is a weight's `hint`, log-odds from elsewhere, less their mean over the tensor. s_t, a_t, one c for all tensors (1
    where the complement is as it was drawn, less where it was shrunk) and one b (1 where the hint is right, 0 where it
    has nothing to do with the mask) are found by expectation and maximisation (Dempster, Laird & Rubin 1977); the score
    is the posterior log-odds of the wider normal.

    What starts as a constant (gains of norms, biases) was trained exactly where it is no longer c times that constant.
    """
    weights, begun, spreads = _weights(network), _weights(fresh), _spreads(fresh)
    squares = {name: (weight.double() / spreads[name]).square() for name, weight in weights.items() if spreads[name]}
    hints = {name: hint[name].double() if hint is not None else torch.zeros_like(x) for name, x in squares.items()}
    found = _moved({name: (weights[name], begun[name]) for name in weights if not spreads[name]})
    found |= {name: odds.clamp(-CERTAIN, CERTAIN).float() for name, odds in _mixture(squares, hints).items()}
    return {name: found[name] for name in weights}


def _mixture(squares: Mapping[str, Tensor], hints: Mapping[str, Tensor]) -> Scores:
    """The log-odds of `likelihood` from (w / sigma_t)^2; one Newton step on a_t and b in each maximisation."""
    narrow, slope = 1.0, 1.0
    wide = {name: max(4.0, 2 * float(x.mean())) for name, x in squares.items()}
    offset = {name: float(hint.mean()) for name, hint in hints.items()}
    hints = {name: hint - hint.mean() for name, hint in hints.items()}

    def prior(name: str) -> Tensor:
        return offset[name] + slope * hints[name]

    def ratio(name: str) -> Tensor:
        found: Tensor = 0.5 * (squares[name] * (1 / narrow - 1 / wide[name]) + math.log(narrow / wide[name]))
        return found

    for _ in range(ITERATIONS):
        left = total = pull = stiffness = 0.0
        for name, x in squares.items():
            expected = torch.sigmoid(prior(name))
            trained = torch.sigmoid(prior(name) + ratio(name))
            surplus, variance = trained - expected, expected * (1 - expected)
            pull += float((surplus * hints[name]).sum())
            stiffness += float((variance * hints[name].square()).sum())
            step = float(surplus.sum()) / max(float(variance.sum()), 1e-9)
            offset[name] += max(-1.0, min(1.0, step))  # far out the sigmoid is flat, and a whole step leads nowhere
            offset[name] = max(-LIMIT, min(LIMIT, offset[name]))
            wide[name] = float((trained * x).sum()) / max(float(trained.sum()), 1e-9)
            left += float((1 - trained).sum())
            total += float(((1 - trained) * x).sum())
        slope += pull / stiffness if stiffness else 0.0
        narrow = max(total / max(left, 1e-9), 1e-12)
        wide = {name: max(variance, 1.01 * narrow) for name, variance in wide.items()}
    return {name: prior(name) + ratio(name) for name in squares}


def _moved(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Scores:
    """For weights and the constants they started from: -CERTAIN where a weight is c times its constant, else CERTAIN.

    c is the factor that most of them share to the bit, in all tensors together, or 1 where no two share one.
    """
    factors = [(weight / start)[start != 0] for weight, start in pairs.values()]
    values, counts = np.unique(torch.cat(factors).cpu().numpy() if factors else [1.0], return_counts=True)
    factor = float(values[counts.argmax()]) if counts.max(initial=0) > 1 else 1.0
    return {
        name: torch.where(torch.where(start == 0, weight == 0, weight / start == factor), -CERTAIN, CERTAIN)
        for name, (weight, start) in pairs.items()
    }


def support(network: nn.Module, fresh: nn.Module) -> Scores:
    """1 for what lies beyond the bound of a truncated or uniform initialisation, and so must have been trained; else 0.

    The bound is one that the tensor's own weights show, or that of the architecture's initialisation. Where neither
    shows one, as with normal draws, every weight has the same score: nothing is claimed.
    """
    begun = _weights(fresh)
    found = {}
    for name, weight in _weights(network).items():
        own = bound(weight)
        limit = own if own is not None else bound(begun[name])
        found[name] = (weight.abs() > limit).float() if limit is not None else torch.zeros_like(weight)
    return found


def bound(weight: Tensor) -> float | None:
    """Where the density of |w| jumps down, if it does: the clearest such place among the weights' own sizes.

    Four equal bins, two on either side of the place, hold n_1 … n_4 weights. The third difference of their logarithms
    is zero for every density whose logarithm is quadratic, normals above all, wherever in the tail; so is, nearly, that
    of their square roots, whose standard error is 1/2 each (Anscombe 1948). A bound must stand out in both. Weights
    that were rounded lie on a comb, whose teeth are no bounds.
    """
    sizes = weight.detach().abs().flatten().double().sort().values
    sizes = sizes[sizes > 0]
    if len(sizes.unique_consecutive()) <= len(sizes) / 2:  # type: ignore[no-untyped-call]
        return None

    def held(low: float, high: float) -> Tensor:
        ends = [torch.searchsorted(sizes, share * sizes, right=True) for share in (low, high)]
        return (ends[1] - ends[0]).double()

    bins = [held(1 + place * BIN, 1 + (place + 1) * BIN) for place in (-2, -1, 0, 1)]
    errors = _third_difference([count.sqrt() for count in bins]) / math.sqrt(5)  # (1 + 9 + 9 + 1) / 4
    steps = _third_difference([(count + 0.5).log() for count in bins]) / 2
    apart = torch.minimum(bins[0], bins[1]) > JUMP * torch.maximum(bins[2], bins[3])
    errors[(steps < math.log(JUMP)) | ~apart] = 0.0
    return float(sizes[errors.argmax()]) if errors.max() > SURE else None


def _third_difference(values: Sequence[Tensor]) -> Tensor:
    first, second, third, fourth = values
    return 3 * (second - third) - (first - fourth)


# ----------------------------------------------------------------------------------------------------------- gradients


def mean_magnitude(gradients: Iterable[Mapping[str, Tensor]]) -> Scores:
    """Mean of |g| over batches. The early-bird mask marks the largest |g|, and where they are large changes slowly."""
    return _mean({name: gradient.abs() for name, gradient in found.items()} for found in gradients)


def fisher(gradients: Iterable[Mapping[str, Tensor]]) -> Scores:
    """Mean of g^2 over batches: the diagonal of the empirical Fisher information where a batch is one example."""
    return _mean({name: gradient.square() for name, gradient in found.items()} for found in gradients)


def wandering(total: Mapping[str, Tensor], path: Mapping[str, Tensor]) -> Scores:
    """1 - |sum of u_t| / (sum of |u_t|) over the steps u_t of a short training at a tiny rate.

    The direction is that of theory and of no measurement: where pre-training ends, a trained weight's expected gradient
    is zero, so that its steps cancel; a weight of the complement never went where the loss draws it, and its steps add
    up. A weight that does not move at all has no gradient, and the mask is of large ones: 0.
    """
    return {
        name: torch.where(length > 0, 1 - total[name].abs() / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)
        for name, length in path.items()
    }


def _mean(batches: Iterable[Scores]) -> Scores:
    total: Scores = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        total = {name: value if count == 1 else total[name] + value for name, value in batch.items()}
    return {name: value / count for name, value in total.items()}


# ---------------------------------------------------------------------------------------------------- a second network


def departure(network: nn.Module, origin: nn.Module) -> Scores:
    """How far the ratio of a weight to what it is in `origin` is from the ratio that most of its tensor share: 0 for a
    weight that stood still or decayed with the others, at most 1.

    `origin` is the network before training or another checkpoint of the run. Small tensors share their ratio with
    others of their kind: matrices decay, vectors mostly do not.
    """
    begun = _weights(origin)
    pairs = {name: (weight.double(), begun[name].double()) for name, weight in _weights(network).items()}
    groups: dict[str | bool, list[str]] = {}
    for name, (weight, _) in pairs.items():
        groups.setdefault(name if weight.numel() >= ALONE else weight.ndim < 2, []).append(name)
    found: Scores = {}
    for names in groups.values():
        ratio = _common(torch.cat([(pairs[name][0] / pairs[name][1]).flatten() for name in names]))
        for name in names:
            weight, start = pairs[name]
            relative = (weight / (ratio * start) - 1).abs().clamp(max=1.0)
            found[name] = torch.where(start == 0, (weight != 0).double(), relative).float()
    return {name: found[name] for name in pairs}


def related(network: nn.Module, origin: nn.Module) -> float:
    """The share of the drawn weights that stand in one common ratio to `origin`: hardly any for unrelated networks."""
    shapes, others = ({name: w.shape for name, w in _weights(one).items()} for one in (network, origin))
    if shapes != others:
        return 0.0
    spreads = _spreads(origin)
    found = [scores.flatten() for name, scores in departure(network, origin).items() if spreads[name]]
    return float((torch.cat(found) < SAME).double().mean()) if found else 0.0


def _common(ratios: Tensor) -> float:
    """The middle of the densest interval of relative width `SAME`; 1 where no ratio is positive."""
    ratios = ratios[torch.isfinite(ratios) & (ratios > 0)].sort().values
    if not len(ratios):
        return 1.0
    ends = torch.searchsorted(ratios, ratios * (1 + SAME), right=True)
    first = int((ends - torch.arange(len(ratios), device=ratios.device)).argmax())
    return float(ratios[(first + int(ends[first]) - 1) // 2])


# --------------------------------------------------------------------------------------------------- learnt on shadows


def features(
    network: nn.Module,
    fresh: nn.Module,
    size: Mapping[str, Tensor],
    information: Mapping[str, Tensor],
    hint: Mapping[str, Tensor],
) -> Scores:
    """What a classifier goes by, ten numbers for each weight [..., 10].

    The logarithm of |w| against the initialisation, the log-odds of `likelihood`, the logarithms of mean |g| (`size`)
    and of mean g^2 (`information`), the hint; then the means of these over the tensor.
    """
    weights, begun, spreads = _weights(network), _weights(fresh), _spreads(fresh)
    odds = likelihood(network, fresh, hint)
    found = {}
    for name, weight in weights.items():
        distance = weight.abs() / spreads[name] if spreads[name] else (weight - begun[name]).abs()
        own = torch.stack(
            [
                (distance + 1e-3).log(),
                odds[name].clamp(-10, 10),
                (size[name] + 1e-12).log(),
                (information[name] + 1e-24).log(),
                hint[name],
            ],
            dim=-1,
        ).float()
        found[name] = torch.cat([own, own.flatten(0, -2).mean(0).expand_as(own)], dim=-1)
    return found


def combination(shadows: Sequence[tuple[Mapping[str, Tensor], Mask]], target: Mapping[str, Tensor]) -> Scores:
    """Log-odds by a logistic regression on standardised features, fitted to masks that the attacker knows.

    Args:
        shadows: `features` and the mask of each shadow release, `FITTED` weights of which are looked at.
        target: `features` of the release.
    """
    generator = np.random.default_rng(0)
    rows, marks = [], []
    for given, mask in shadows:
        every, marked = _flat(given), np.concatenate([mask[name].flatten().cpu().numpy() for name in given])
        chosen = generator.permutation(len(every))[:FITTED]
        rows.append(every[chosen])
        marks.append(marked[chosen])
    wanted = np.concatenate(marks)
    if wanted.all() or not wanted.any():  # a mask of one kind leaves nothing to learn
        return {name: torch.zeros_like(given[..., 0]) for name, given in target.items()}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    odds = torch.from_numpy(classifier.fit(np.concatenate(rows), wanted).decision_function(_flat(target))).float()
    parts = odds.split([given[..., 0].numel() for given in target.values()])  # type: ignore[no-untyped-call]
    return {
        name: part.view(given.shape[:-1]).to(given.device)
        for (name, given), part in zip(target.items(), parts, strict=True)
    }


def _flat(given: Mapping[str, Tensor]) -> np.ndarray:
    return torch.cat([part.flatten(0, -2) for part in given.values()]).cpu().numpy()


# -------------------------------------------------------------------------------------------------------------- common


def _weights(network: nn.Module) -> Scores:
    return {name: weight.detach() for name, weight in network.named_parameters()}


def _spreads(fresh: nn.Module) -> dict[str, float]:
    """The standard deviation of each tensor of an untrained network; exactly 0 where it starts as a constant."""
    return {
        name: float(weight.double().std(correction=0)) if weight.min() < weight.max() else 0.0
        for name, weight in _weights(fresh).items()
    }
