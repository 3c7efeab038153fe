"""Architectures that transformers does not have and some defense releases: one module for each family of them.

`nftbench.models.networks` registers them when it is imported, so that whatever loads models through it (`nftbench
lm-eval` too) finds them by the `model_type` in a folder's config.json, without remote code.
"""

from __future__ import annotations


def register() -> None:
    """Make transformers' Auto classes know every architecture here; a second call changes nothing."""
    from nftbench.models.architectures import dlr, linear

    dlr.register()
    linear.register()
