"""Causal language models in Hugging Face's format, their updates, and the architectures that transformers lacks.

Everything that reads, writes or initialises weights goes through this room, so that no other module calls
`from_pretrained`. Import `build`, `load`, `save`, `seeded` and `untrained` from here, and anything else from the module
that defines it: `networks`, `updates` or `architectures`.
"""

from __future__ import annotations

from nftbench.models.networks import build, load, save, seeded, untrained

__all__ = ["build", "load", "save", "seeded", "untrained"]
