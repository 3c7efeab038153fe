"""Checkpoints that a defense is given by path: what their files hold, without reading a weight."""

from __future__ import annotations

import functools
from pathlib import Path

from nftbench.models import networks
from nftbench.planning import pinning


def check(path: str) -> None:
    """Refuse what is no checkpoint that can be read. The hub is not asked.

    Raises:
        NftbenchError: `path` is neither a folder with a causal LM nor a hub id.
    """
    if not pinning.is_on_hub(path):
        networks.load(path, "meta")


def content(path: str) -> str:
    """A hash of the files of a folder; empty for a model on the hub."""
    return pinning.content_hash(Path(path)) if Path(path).exists() else ""


def parameters(path: str) -> int | None:
    """The number of parameters of a folder's model; None for a model on the hub, which is asked when a cell runs."""
    return _parameters(path, content(path)) if Path(path).is_dir() else None


@functools.cache  # each row of a plan asks, and the answer takes a second for a large model
def _parameters(path: str, content: str) -> int:
    return int(networks.load(path, "meta").network.num_parameters())
