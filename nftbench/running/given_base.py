"""The given base of a suite: fetched, and kept once in the cache for all seeds and rows, in the suite's precision."""

from __future__ import annotations

from pathlib import Path

import torch

from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import pinning
from nftbench.planning.keys import base_key
from nftbench.records.store import Store
from nftbench.running import hub
from nftbench.suites.schema import GivenModel, Suite


def folder(store: Store, suite: Suite) -> Path:
    """The folder of a pinned base in the cache; it is read from where it lies if the cache lacks it.

    Raises:
        NftbenchError: its files have changed since planning, cannot be fetched or read, or hold weights that are not
            finite.
    """
    assert suite.given is not None
    given = suite.given
    key = f"{base_key(suite, 0, None, CPU)[:32]}-given"
    return store.artifact("bases", key) or store.make("bases", key, lambda draft: _write(given, draft))


def precision(given: GivenModel | None) -> torch.dtype:
    """The precision in which base and releases are stored and attacked."""
    return torch.bfloat16 if given is not None and given.dtype == "bfloat16" else torch.float32


def _write(given: GivenModel, draft: Path) -> None:
    on_hub = given.sha256 is None
    _check_unchanged(given)
    model = networks.load(hub.downloaded(given.path, str(given.revision)) if on_hub else given.path)
    networks.check_finite(model.network, given.path)
    model.network.to(precision(given))
    networks.save(model, draft)
    _check_unchanged(given)  # the files may have been written to while they were read


def _check_unchanged(given: GivenModel) -> None:
    if given.sha256 is not None and pinning.content_hash(Path(given.path)) != given.sha256:
        raise NftbenchError(f"{given.path}: its files have changed since the run was planned; start the run again")
