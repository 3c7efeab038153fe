"""Cost: the memory, FLOPs and time of training a release, relative to the undefended model, and their KL divergence.

DLR-Lock (Sakamoto et al. 2026, https://arxiv.org/abs/2605.10777) claims three effects. Memory grows with depth, the
backward pass is slow relative to the forward pass, and an attack gains less for the same budget. The first two are
measured here, and the third is visible in the attacks' records.
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
    """Ratios of the release over the base, measured on the first `batch` held-out blocks.

    - `parameter_ratio`, `forward_flops_ratio`, `step_flops_ratio`
    - `saved_ratio`: bytes saved for the backward pass; `saved_per_token` is their number for the release
    - `peak_ratio`: memory of an AdamW step
    - `forward_ratio`, `backward_ratio`: seconds, as medians over `rounds`; they alone depend on the machine, as does
      their quotient `backward_over_forward`
    - `kl`: the mean KL(base ‖ release) in nats on the first `blocks` held-out blocks

    For locked models also the bytes that the DLR-Nets alone save for each token, as means over layers: `mlp_saved` is
    the count, `mlp_analytic` the value of the formula in `saved_numbers`, and `mlp_error` the largest
    |count / formula - 1| of a layer. `mlp_ratio` is the count over that of the base's MLPs.
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
    """Bytes that DLR-Nets save for each token, counted and by formula, and relative to the MLPs that they replace."""
    # Zeros suffice: what a layer saves does not depend on the values of its input.
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
    """Bytes for each token by the formula, if saved numbers have the dtype of the weights."""
    downs = [module.weight for module in net.modules() if isinstance(module, dlr.Down)]
    total_rank = sum(len(down) for down in downs)
    return downs[0].element_size() * dlr.saved_numbers(len(downs), downs[0].shape[1], total_rank)
