"""Cost: what training a release takes beside the undefended model, and how far it says something else.

DLR-Lock's three mechanisms (Sakamoto et al. 2026, https://arxiv.org/abs/2605.10777): memory that grows with depth, a
backward pass that is dear beside the forward pass, and, in the attacks' own records, less gain for the budget.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from nftbench import Inspection, Reading, Yardstick
from nftbench.methods import dlr
from nftbench.methods.overhead import divergence, footprint, saved_per_token, times


@dataclass(frozen=True)
class TrainingCost(Yardstick):
    """Ratios are the release's over the base's, on the first `batch` held-out blocks: `parameter_ratio`, `saved_ratio`
    (bytes kept for backward), `peak_ratio` (memory of an AdamW step), `forward_flops_ratio`, `step_flops_ratio`.

    `forward_ratio`, `backward_ratio`, and `backward_over_forward`, which is their quotient, are of seconds, medians of
    `rounds`; they depend on the machine, and no other value does. `saved_per_token` is in bytes, `kl` the mean
    KL(base ‖ release) in nats on the first `blocks` held-out blocks.

    Of locked models there are also the DLR-Nets by themselves, the mean over layers: `mlp_saved` bytes for each token
    as counted, `mlp_analytic` as by `saved_numbers`, `mlp_error`, the worst layer's |counted / analytic - 1|, and
    `mlp_ratio`, counted over what the MLPs in their place keep.
    """

    batch: int = 16
    rounds: int = 7
    blocks: int = 128

    def measure(self, inspection: Inspection) -> Reading:
        release, base = inspection.release.network, inspection.base.network
        heldout = inspection.corpus.heldout[: max(self.batch, self.blocks)].to(release.device)
        tokens = heldout[: self.batch]
        own, theirs = footprint(release, tokens), footprint(base, tokens)
        taken, reference = times([release, base], tokens, self.rounds)
        values = {
            "parameter_ratio": own.parameters / theirs.parameters,
            "saved_per_token": own.saved_bytes_per_token,
            "saved_ratio": own.saved_bytes_per_token / theirs.saved_bytes_per_token,
            "peak_ratio": own.peak_memory_bytes / theirs.peak_memory_bytes,
            "forward_flops_ratio": own.forward_flops_per_token / theirs.forward_flops_per_token,
            "step_flops_ratio": own.step_flops_per_token / theirs.step_flops_per_token,
            "forward_ratio": taken.forward / reference.forward,
            "backward_ratio": taken.backward / reference.backward,
            "backward_over_forward": taken.ratio / reference.ratio,
            "kl": divergence(release, base, heldout[: self.blocks]),
        }
        nets = [net for net in dlr.mlps(release).values() if isinstance(net, dlr.DlrNet)]
        return Reading(values | (_by_layer(nets, release, base, self.batch) if nets else {}))


def _by_layer(nets: list[dlr.DlrNet], release: PreTrainedModel, base: PreTrainedModel, batch: int) -> dict[str, float]:
    """What the DLR-Nets keep for each token, counted and by the formula, beside the MLPs that they replace."""
    # What a layer keeps does not depend on the numbers that it is given.
    hidden = torch.zeros(1, batch, release.config.hidden_size, device=release.device)
    counted = [saved_per_token(net, hidden) for net in nets]
    analytic = [_analytic(net) for net in nets]
    return {
        "mlp_saved": statistics.fmean(counted),
        "mlp_analytic": statistics.fmean(analytic),
        "mlp_error": max(abs(found / wanted - 1) for found, wanted in zip(counted, analytic, strict=True)),
        "mlp_ratio": sum(counted) / sum(saved_per_token(mlp, hidden) for mlp in dlr.mlps(base).values()),
    }


def _analytic(net: dlr.DlrNet) -> float:
    """Bytes for each token: a number takes what a weight takes."""
    downs = [module.weight for module in net.modules() if isinstance(module, dlr.Down)]
    total_rank = sum(len(down) for down in downs)
    return downs[0].element_size() * dlr.saved_numbers(len(downs), downs[0].shape[1], total_rank)
