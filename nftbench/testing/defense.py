"""`check_defense`: what a defense promises, held against tiny models."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors import safe_open

from nftbench.contract import Claim, Defense, Model, Protected, Update
from nftbench.models import networks, updates
from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import Workspace
from nftbench.terms import Stage
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise
from nftbench.testing.tiny import ARCHITECTURES, temporary_workspace, tiny_suite


@registry.importing_added()
def check_defense(defense: Defense | str, *, architectures: Sequence[str] = tuple(ARCHITECTURES)) -> None:
    """Protect a tiny model of each architecture twice and hold the defense to its protocol.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin: Defense = well_formed("defenses", defense)
    promise(plugin.stage in get_args(Stage), f"stage is one of {', '.join(get_args(Stage))}, not {plugin.stage!r}")
    promise(plugin.claims is None or isinstance(plugin.claims, Claim), "claims is a Claim or None")
    for text in filter(None, (plugin.reference_row(), plugin.control_row())):
        Spec.parse(text)
    promise(isinstance(plugin.fingerprint(), str), "fingerprint() returns a string")
    for architecture in architectures:
        with temporary_workspace(tiny_suite(architecture)) as workspace:
            plugin.check(workspace.suite)
            first, second = (_protect(workspace, plugin) for _ in range(2))
            _check_protected(plugin, first)
            if first.update is not None:
                _check_update(first.release, first.update, make_base(workspace, 0))
            _check_publishable(first.release)
            promise(
                identical(first.release.network.state_dict(), second.release.network.state_dict()),
                f"the same seed gives the same release ({architecture})",
            )
            if first.secret is not None and second.secret is not None:
                promise(identical(first.secret.mask, second.secret.mask), "the same seed gives the same secret mask")


def _protect(workspace: Workspace, plugin: Defense) -> Protected:
    owner = Owner(workspace, 0, plugin.told())
    model = owner.build() if plugin.stage == "pretrain" else make_base(workspace, 0)
    with keeps_random_state("protect"):
        protected = plugin.protect(model, owner)
    promise(isinstance(protected, Protected), f"protect returns Protected, not {type(protected).__name__}")
    return protected


def _check_protected(plugin: Defense, protected: Protected) -> None:
    weights = dict(protected.release.network.named_parameters())
    for name, weight in weights.items():
        promise(bool(torch.isfinite(weight).all()), f"the release's weights are finite: {name}")
    promise(protected.release.tokenizer is not None, "the release keeps its tokenizer")
    promise(
        (protected.secret is not None) == plugin.keeps_secret,
        f"keeps_secret is {plugin.keeps_secret}, and protect returned {'a' if protected.secret else 'no'} secret",
    )
    promise(
        (protected.update is not None) == plugin.releases_update,
        f"releases_update is {plugin.releases_update}, and protect gave {'an' if protected.update else 'no'} update",
    )
    if protected.secret is None:
        return
    mask = protected.secret.mask
    promise(set(mask) == set(weights), "the secret mask has one entry for each parameter")
    for name, kept in mask.items():
        promise(kept.dtype == torch.bool, f"the secret mask is boolean: {name}")
        promise(kept.shape == weights[name].shape, f"the secret mask has the parameter's shape: {name}")


def _check_update(release: Model, update: Update, base: Model) -> None:
    found = updates.added(base.network, updates.dense(update)).state_dict()
    for name, weight in release.network.state_dict().items():
        promise(torch.allclose(found[name], weight, atol=1e-5), f"the release is the base plus the update: {name}")


def _check_publishable(model: Model) -> None:
    """What is saved is what is loaded, and nothing else is saved."""
    with tempfile.TemporaryDirectory() as folder:
        networks.save(model, Path(folder))
        published = networks.load(folder).network.state_dict()
        saved = set()
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                saved |= set(file.keys())
    surplus = sorted(saved - set(published))
    promise(not surplus, f"the release's folder holds the model's tensors and no others: {', '.join(surplus)}")
    own = {name: tensor.float() for name, tensor in model.network.state_dict().items()}
    promise(identical(own, published), "the release is bit for bit the same after saving and loading")
