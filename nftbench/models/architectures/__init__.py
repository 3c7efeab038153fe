"""Architectures that transformers lacks and that some releases use, one module for each family.

`nftbench.models.networks` registers them when it is imported. Everything that loads models, `nftbench lm-eval`
included, then finds them by the `model_type` in config.json and needs no remote code. Import a family's module, `dlr`,
`linear` or `two_layer`, to work with its classes.
"""

from __future__ import annotations


def register() -> None:
    """Register every family with transformers' Auto classes. A second call changes nothing."""
    from nftbench.models.architectures import dlr, linear, two_layer

    for family in (dlr, linear, two_layer):
        family.register()
