"""`check_defense`: what a defense promises, held against tiny models."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from nftbench.contract import Defense, Model, Passes, Protected, Update
from nftbench.errors import NftbenchError
from nftbench.models import networks, updates
from nftbench.records.spec import Spec
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import Workspace
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise, returns, source_of, works
from nftbench.testing.tiny import ARCHITECTURES, temporary_workspace, tiny_suite


def check_defense(
    defense: Defense | type[Defense] | ModuleType | str | Path,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
) -> None:
    """Protect a tiny model of each architecture twice and hold the defense to its protocol.

    Args:
        defense: an object, a class, a module, a spec, or a file or folder as `--plugin` takes it.
        architectures: those of `ARCHITECTURES` to try. One that the defense's own `check` refuses is left out.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    with well_formed("defenses", defense) as plugin:
        with works("its reference and control rows are specs", source_of(plugin)):
            for text in filter(None, (plugin.reference_row(), plugin.control_row())):
                Spec.parse(text)
        refusals = [refusal for name in architectures if (refusal := _check_on(plugin, name)) is not None]
        promise(
            len(refusals) < len(architectures),
            f"it runs on one of {', '.join(architectures)}",
            f"its check refuses {'; '.join(refusals)}",
        )


def _check_on(plugin: Defense, architecture: str) -> str | None:
    """Check the defense on one architecture; returns why it refuses that one, or None."""
    with temporary_workspace(tiny_suite(architecture)) as workspace:
        with works("check refuses a suite by NftbenchError alone", source_of(plugin)):
            refusal = _refusal(plugin, workspace)
        if refusal is not None:
            return f"{architecture} ({refusal})"
        with works("it says how much it trains", source_of(plugin)):
            passes = plugin.training_passes(workspace.suite)
        returns("training_passes", passes, Passes, "end it with `return Passes(blocks=…)`")
        first, second = (_protect(workspace, plugin) for _ in range(2))
        _check_protected(plugin, first)
        if first.update is not None:
            _check_update(first.release, first.update, make_base(workspace, 0))
        _check_publishable(first.release)
        seeded = "draw all that is random from generators seeded with context.seed"
        promise(
            identical(first.release.network.state_dict(), second.release.network.state_dict()),
            "the same seed gives the same release",
            f"on {architecture} two releases differ: {seeded}",
        )
        if first.secret is not None and second.secret is not None:
            same = identical(first.secret.mask, second.secret.mask)
            promise(same, "the same seed gives the same secret mask", f"on {architecture} two masks differ: {seeded}")
    return None


def _refusal(plugin: Defense, workspace: Workspace) -> str | None:
    try:
        plugin.check(workspace.suite)
    except NftbenchError as error:
        return str(error)
    return None


def _protect(workspace: Workspace, plugin: Defense) -> Protected:
    with works("protect ends without an error", source_of(plugin)):
        owner = Owner(workspace, 0, plugin.told())
        model = owner.build() if plugin.stage == "pretrain" else make_base(workspace, 0)
        with keeps_random_state("protect"):
            protected = plugin.protect(model, owner)
    returns("protect", protected, Protected, "end it with `return Protected(model)`")
    return protected


def _check_protected(plugin: Defense, protected: Protected) -> None:
    weights = dict(protected.release.network.named_parameters())
    broken = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    promise(not broken, "the release's weights are finite", f"NaN or infinity in {', '.join(broken)}")
    promise(
        protected.release.tokenizer is not None,
        "the release keeps its tokenizer",
        "return the model that protect was given, or `Model(network, model.tokenizer)`",
        essential=True,
    )
    promise(
        (protected.secret is not None) == plugin.keeps_secret,
        "keeps_secret says whether protect returns a secret",
        f"the class says keeps_secret = {plugin.keeps_secret}, but protect returned "
        f"{'a' if protected.secret else 'no'} secret: "
        f"write `keeps_secret: ClassVar[bool] = {protected.secret is not None}`",
    )
    promise(
        (protected.update is not None) == plugin.releases_update,
        "releases_update says whether protect returns an update",
        f"releases_update is {plugin.releases_update}, and protect gave {'an' if protected.update else 'no'} update",
    )
    if protected.secret is None:
        return
    mask = protected.secret.mask
    unlike = sorted(set(mask) ^ set(weights))
    promise(
        not unlike,
        "the secret mask has one entry for each parameter",
        f"missing there, or no parameter: {', '.join(unlike)}",
        essential=True,
    )
    for name, kept in mask.items():
        promise(kept.dtype == torch.bool, "the secret mask is boolean", f"{name} is {kept.dtype}")
        shapes = f"{name} has {tuple(kept.shape)} instead of {tuple(weights[name].shape)}"
        promise(kept.shape == weights[name].shape, "each entry of the secret mask has the parameter's shape", shapes)


def _check_update(release: Model, update: Update, base: Model) -> None:
    found = updates.added(base.network, updates.dense(update)).state_dict()
    weights = release.network.state_dict()
    unlike = [name for name, weight in weights.items() if not torch.allclose(found[name], weight, atol=1e-5)]
    promise(not unlike, "the release is the base plus the update", f"it is not in {', '.join(unlike)}")


def _check_publishable(model: Model) -> None:
    """What is saved is what is loaded, and nothing else is saved."""
    with tempfile.TemporaryDirectory() as folder:
        with works("the release can be saved and loaded again"):
            networks.save(model, Path(folder))
            published = networks.load(folder).network.state_dict()
        surplus = sorted(networks.tensor_names(Path(folder)) - set(published))
    promise(
        not surplus,
        "the release's folder holds the model's tensors and no others",
        f"{', '.join(surplus)}: what a configuration of transformers does not describe is lost to whoever loads it",
    )
    own = {name: tensor.float() for name, tensor in model.network.state_dict().items()}
    promise(
        identical(own, published),
        "the release is bit for bit the same after saving and loading",
        "only weights and configuration are published: hooks, buffers and changed classes are lost",
    )
