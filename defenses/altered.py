"""An altered checkpoint: a trivial change of any causal LM, against which an audited release is compared.

The ladder of an audit consists of such rows. They begin at the undefended twin of the release, so that what the release
takes from an attacker can be compared with what anyone could take from the twin in a minute.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench import Defense, Model, OwnerContext, Protected, Spec, Stage
from nftbench.methods import load, untrained
from nftbench.methods.adapters import linear_layers
from nftbench.methods.masks import top


@dataclass(frozen=True)
class Altered(Defense):
    """`path` is a folder or a hub id (`organisation/name`), and `dose` says how much is changed:

    - `noise`: the standard deviation of Gaussian noise, relative to the root mean square of the tensor.
    - `reinit`: the share of the weights that get the values of an untrained model.
    - `prune`: the share of the weights in matrices, those of smallest magnitude, that become zero.
    - `quantize`: the number of bits to which the linear layers are rounded.
    """

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True

    path: str
    change: Literal["noise", "reinit", "prune", "quantize"]
    dose: float

    def __post_init__(self) -> None:
        if self.change == "quantize":
            if not (2 <= self.dose <= 8 and self.dose == round(self.dose)):
                raise ValueError(f"dose of quantize must be a number of bits from 2 to 8, not {self.dose:g}")
        elif self.dose <= 0 or (self.change != "noise" and self.dose > 1):
            raise ValueError(f"dose of {self.change} must be above 0, and a share at most 1, not {self.dose:g}")

    def reference_row(self) -> str:
        return str(Spec("checkpoint", (("path", self.path),)))

    def fingerprint(self) -> str:
        return _content(_files(Path(self.path)))

    def given_parameters(self) -> int | None:
        folder = Path(self.path)
        return _parameters(folder, _files(folder)) if folder.is_dir() else None

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        twin = load(self.path, str(model.network.device), local=Path(self.path).is_dir())
        network: PreTrainedModel = twin.network
        match self.change:
            case "noise":
                _add_noise(network, self.dose, context.seed)
            case "reinit":
                _reset(network, self.dose, context.seed)
            case "prune":
                _prune(network, self.dose)
            case "quantize":
                _quantize(network, round(self.dose))
        return Protected(twin)


def _add_noise(network: PreTrainedModel, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(noise * weight.square().mean().sqrt() * scale)


def _reset(network: PreTrainedModel, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fresh = dict(untrained(network, seed).named_parameters())
    for name, weight in network.named_parameters():
        chosen = torch.rand(weight.shape, generator=generator).to(weight.device) < share
        weight.copy_(torch.where(chosen, fresh[name], weight))


def _prune(network: PreTrainedModel, share: float) -> None:
    matrices = {name: weight for name, weight in network.named_parameters() if weight.ndim >= 2}
    smallest = top({name: -weight.abs() for name, weight in matrices.items()}, share)
    for name, weight in matrices.items():
        weight[smallest[name]] = 0


def _quantize(network: PreTrainedModel, bits: int) -> None:
    """Symmetric rounding to the nearest step, one scale for each output channel (Krishnamoorthi 2018, section 2.2)."""
    most = 2 ** (bits - 1) - 1
    for name in linear_layers(network):
        layer = network.get_submodule(name)
        within = 0 if isinstance(layer, Conv1D) else 1  # the dimension within a channel
        step = layer.weight.abs().amax(within, keepdim=True) / most
        step = step.clamp_min(torch.finfo(step.dtype).tiny)  # a channel of zeros has no step
        layer.weight.copy_((layer.weight / step).round() * step)


_Files = tuple[tuple[Path, int, int], ...]
"""The files of a checkpoint, each with its size and the time of its last change."""


def _files(folder: Path) -> _Files:
    kept = (".safetensors", ".json", ".txt", ".model")
    found = sorted(path for path in folder.glob("*") if path.suffix in kept) if folder.is_dir() else []
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


@functools.cache  # each of a ladder's rows asks for the content of the same files, which may be gigabytes
def _content(files: _Files) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@functools.cache
def _parameters(folder: Path, files: _Files) -> int:
    return int(load(folder, "meta").network.num_parameters())
