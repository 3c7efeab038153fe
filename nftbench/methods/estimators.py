"""Estimators of a secret mask: a score for each weight, from networks and gradients. Higher means likelier trained.

The mask marks the weights that the owner's pre-training changed. All others, the complement, still have their initial
values, or these multiplied by one common factor (weight decay, projection to a ball). No function here is given the
secret that it estimates.
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
"""The largest log-odds, which stands for certainty: e^50 to one."""
ITERATIONS = 50
"""Iterations of expectation maximisation. On the toy models three digits are stable after twenty."""
LIMIT = 8.0
"""The largest prior log-odds of a tensor, which corresponds to one weight in three thousand."""
BIN = 0.1
"""The width of the bins on both sides of a bound, as a share of the bound."""
SURE = 5.0
"""How many standard errors a drop of the density must measure. Such a drop occurs by chance at one place in three
million, and a few hundred places are examined."""
JUMP = 1.5
"""The smallest ratio of the density inside a bound to the density outside it."""
SAME = 1e-4
"""The relative difference below which two ratios count as equal. Decay in float32 leaves 1e-5 after some thousand
steps. The ratios of unrelated weights are Cauchy variables, of which one in fifty thousand falls into such an
interval."""
ALONE = 1024
"""A tensor with fewer weights shares its common ratio with other tensors. For example, a norm may have only one gain
whose ratio is not obvious."""
FITTED = 100_000
"""The number of weights of each shadow on which a classifier is fitted."""


# --------------------------------------------------------------------------------------------------- the weights alone


def magnitude(network: nn.Module) -> Scores:
    """The score |w|, since weights are initialised near zero and training moves them away from it."""
    return {name: weight.abs() for name, weight in _weights(network).items()}


def likelihood(network: nn.Module, fresh: nn.Module, hint: Mapping[str, Tensor] | None = None) -> Scores:
    """The posterior log-odds of being trained, by a mixture of two zero-mean normals in each tensor t:

        p N(w; 0, s_t^2) + (1 - p) N(w; 0, (c sigma_t)^2),   s_t > c sigma_t,   log p / (1 - p) = a_t + b h.

    The wider normal is that of trained weights. sigma_t is the standard deviation of the initialisation, measured on
    `fresh`, an untrained network of any seed. (In Hugging Face's GPT-2 it is `initializer_range`, but less for the
    projections into the residual stream.) h is the `hint` of a weight: log-odds from another source, minus their mean
    over the tensor.

    Expectation maximisation (Dempster, Laird & Rubin 1977) fits s_t and a_t of each tensor and two common parameters. c
    is 1 if the complement has its initial values, and lower if it was shrunk. b is 1 if the hint is right, and 0 if it
    is unrelated to the mask.

    Parameters that start as constants (gains of norms, biases) were trained if they differ from c times the constant.
    """
    weights, begun, spreads = _weights(network), _weights(fresh), _spreads(fresh)
    squares = {name: (weight.double() / spreads[name]).square() for name, weight in weights.items() if spreads[name]}
    hints = {name: hint[name].double() if hint is not None else torch.zeros_like(x) for name, x in squares.items()}
    found = _moved({name: (weights[name], begun[name]) for name in weights if not spreads[name]})
    found |= {name: odds.clamp(-CERTAIN, CERTAIN).float() for name, odds in _mixture(squares, hints).items()}
    return {name: found[name] for name in weights}


def _mixture(squares: Mapping[str, Tensor], hints: Mapping[str, Tensor]) -> Scores:
    """The log-odds of `likelihood`, from (w / sigma_t)^2. Each maximisation takes one Newton step on a_t and b."""
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
            offset[name] += max(-1.0, min(1.0, step))  # clipped, since a Newton step diverges where the sigmoid is flat
            offset[name] = max(-LIMIT, min(LIMIT, offset[name]))
            wide[name] = float((trained * x).sum()) / max(float(trained.sum()), 1e-9)
            left += float((1 - trained).sum())
            total += float(((1 - trained) * x).sum())
        slope += pull / stiffness if stiffness else 0.0
        narrow = max(total / max(left, 1e-9), 1e-12)
        wide = {name: max(variance, 1.01 * narrow) for name, variance in wide.items()}
    return {name: prior(name) + ratio(name) for name in squares}


def _moved(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Scores:
    """For pairs of weights and their initial constants: -CERTAIN where a weight is c times its constant, else CERTAIN.

    c is the exact factor that most weights of all tensors have in common, or 1 if no two have the same factor.
    """
    factors = [(weight / start)[start != 0] for weight, start in pairs.values()]
    values, counts = np.unique(torch.cat(factors).cpu().numpy() if factors else [1.0], return_counts=True)
    factor = float(values[counts.argmax()]) if counts.max(initial=0) > 1 else 1.0
    return {
        name: torch.where(torch.where(start == 0, weight == 0, weight / start == factor), -CERTAIN, CERTAIN)
        for name, (weight, start) in pairs.items()
    }


def support(network: nn.Module, fresh: nn.Module) -> Scores:
    """1 for weights beyond the bound of a truncated or uniform initialisation, which must have been trained; else 0.

    The bound is found in the distribution of the tensor's own weights, or else of untrained ones. If neither shows a
    bound, as for normal initialisation, all weights have the same score.
    """
    begun = _weights(fresh)
    found = {}
    for name, weight in _weights(network).items():
        own = bound(weight)
        limit = own if own is not None else bound(begun[name])
        found[name] = (weight.abs() > limit).float() if limit is not None else torch.zeros_like(weight)
    return found


def bound(weight: Tensor) -> float | None:
    """The value of |w| at which the density drops most clearly, or None if it does not drop.

    Four equal bins, two on each side of a value, contain n_1 … n_4 weights. The third difference of log n is zero for
    every density whose logarithm is quadratic, such as a normal one, anywhere in its tail. The third difference of
    sqrt(n) is nearly zero, too, and each root has a standard error of 1/2 (Anscombe 1948). A bound must be significant
    in both. For rounded weights, whose density consists of spikes, the result is None.
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
    """Mean of |g| over batches. The early-bird mask marks the largest |g|, and these change slowly during training."""
    return _mean({name: gradient.abs() for name, gradient in found.items()} for found in gradients)


def fisher(gradients: Iterable[Mapping[str, Tensor]]) -> Scores:
    """Mean of g^2 over batches: the diagonal of the empirical Fisher information if each batch is one example."""
    return _mean({name: gradient.square() for name, gradient in found.items()} for found in gradients)


def wandering(total: Mapping[str, Tensor], path: Mapping[str, Tensor]) -> Scores:
    """1 - |sum of u_t| / (sum of |u_t|) over the steps u_t of a short training at a tiny learning rate.

    The sign of the score follows from theory, not from measurements. At the end of pre-training the expected gradient
    of a trained weight is zero, so that its steps cancel. A weight of the complement has not moved to where the loss
    pulls it, and its steps add up. A weight that does not move has no gradient; since masks mark large gradients, it
    scores 0.
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
    """How far a weight's ratio to its value in `origin` is from the most common ratio of its tensor, at most 1.

    It is 0 for a weight that did not change or decayed like most others. `origin` is the network before training or
    another checkpoint of the run. Small tensors are grouped to find their ratio, matrices and vectors separately,
    because weight decay mostly applies to matrices alone.
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
    """The share of the randomly initialised weights that have a common ratio to `origin`; near 0 if unrelated."""
    shapes, others = ({name: w.shape for name, w in _weights(one).items()} for one in (network, origin))
    if shapes != others:
        return 0.0
    spreads = _spreads(origin)
    found = [scores.flatten() for name, scores in departure(network, origin).items() if spreads[name]]
    return float((torch.cat(found) < SAME).double().mean()) if found else 0.0


def _common(ratios: Tensor) -> float:
    """The middle of the densest interval of relative width `SAME`; 1 if no ratio is positive."""
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
    """The inputs of a classifier, ten numbers for each weight [..., 10].

    The first five are those of the weight: the logarithm of |w| relative to the initialisation, the log-odds of
    `likelihood`, the logarithms of mean |g| (`size`) and mean g^2 (`information`), and the hint. The other five are
    their means over the tensor.
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
    """Log-odds by a logistic regression on standardised features, fitted to the masks of shadow releases.

    Args:
        shadows: `features` and the mask of each shadow release. `FITTED` random weights of each are used.
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
    if wanted.all() or not wanted.any():  # a mask that marks all or nothing cannot be learnt from
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
    """The standard deviation of each tensor of an untrained network; exactly 0 if it is initialised to a constant."""
    return {
        name: float(weight.double().std(correction=0)) if weight.min() < weight.max() else 0.0
        for name, weight in _weights(fresh).items()
    }
