"""Causal language models in Hugging Face's format, their updates, and the architectures that transformers lacks.

All weights are initialised, loaded and saved here, so that no other room calls `from_pretrained` for a model. Import
`build`, `load`, `save`, `seeded` and `untrained` from here, and anything else from the module that defines it:
`networks`, `updates` or `architectures`.
"""

from __future__ import annotations

from nftbench.models.networks import build, load, save, seeded, untrained

__all__ = ["build", "load", "save", "seeded", "untrained"]
