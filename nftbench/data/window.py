"""The window of a model: the most tokens of one input, as lm-eval counts them."""

from __future__ import annotations

from nftbench.contract import Model


def window(model: Model) -> int:
    """The model's window in lm-eval: the most tokens of one input."""
    # Here, because plugins import this module: lm-eval, datasets and pandas would be loaded for each plan.
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.network.config, model.tokenizer))
