"""Models on the hub: their folder where it is on this machine already, and else a skeleton without their weights."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nftbench.errors import NftbenchError, one_line
from nftbench.models import networks
from nftbench.planning import pinning

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configuration and tokenizer, as patterns of file names."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def kept(repository: str, revision: str) -> Path | None:
    """A model's folder in the hub's cache on this machine; None if its configuration or a file of weights is missing.

    The network is not used.
    """
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, ValueError):  # not there, or no name of a model
        return None
    if not (folder / "config.json").is_file():
        return None
    if not any(folder.glob("*.safetensors")):
        return folder if any(path.suffix in PICKLED for path in folder.iterdir()) else None
    return folder if all(path.is_file() for path in networks.weight_files(folder)) else None


def downloaded(repository: str, revision: str) -> Path:
    """A model's folder, which is downloaded if it is not on this machine.

    Raises:
        NftbenchError: it cannot be downloaded.
    """
    import huggingface_hub

    try:
        return kept(repository, revision) or Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(pinning.READ))
        )
    except Exception as error:  # the errors of the hub and of its transport share no base class
        raise NftbenchError(f"{repository}: cannot be downloaded: {one_line(str(error))}") from error


@dataclass(frozen=True)
class Files:
    """A checkpoint's folder or GGUF file."""

    path: Path
    with_weights: bool
    """Whether it is whole; else it is a skeleton."""


@contextlib.contextmanager
def files(place: str, revision: str | None = None) -> Iterator[Files]:
    """The files that a path or hub id leads to. Those of a model that would have to be downloaded are a skeleton, which
    lasts as long as the block.

    Raises:
        NftbenchError: it leads nowhere, or the hub cannot be asked.
    """
    if not pinning.is_on_hub(place):
        yield Files(Path(place), True)
        return
    commit = pinning.commit(place, revision)
    if (here := kept(place, commit)) is not None:
        yield Files(here, True)
        return
    with tempfile.TemporaryDirectory(prefix="nftbench-") as folder:
        fill_skeleton(place, Path(folder), commit)
        yield Files(Path(folder), False)


def fill_skeleton(repository: str, folder: Path, revision: str) -> None:
    """Fill a folder with a hub model's small files and the headers of its weights. The weights are holes.

    Raises:
        NftbenchError: the hub cannot be reached, or has no such model.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        names = [item.rfilename for item in hub.model_info(repository, revision=revision).siblings or []]
        huggingface_hub.snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=list(SMALL_FILES)
        )
        for name in names:
            if name.endswith(".safetensors") and "/" not in name:
                _write_holes(folder / name, hub.parse_safetensors_file_metadata(repository, name, revision=revision))
            elif name.endswith(PICKLED) and "/" not in name:
                (folder / name).touch()  # so that the message names it
    except Exception as error:  # the errors of the hub, of its transport and of damaged headers share no base class
        raise pinning.unanswered(repository, error) from error


def _write_holes(path: Path, header: Any) -> None:
    """A safetensors file with this header, in which the weights take no space on disk."""
    tensors = {
        name: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": list(one.data_offsets)}
        for name, one in header.tensors.items()
    }
    text = json.dumps({"__metadata__": header.metadata or {}, **tensors}).encode()
    end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
