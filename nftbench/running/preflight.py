"""What is known of a checkpoint before anything is trained: from its configuration and the headers of its weights.

A checkpoint on the hub is looked at through a skeleton, a folder with its small files and the headers of its weights.
No weight is downloaded for that.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from nftbench.data import chat
from nftbench.data.lm_eval_tasks import window
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models import gguf, networks
from nftbench.planning import pinning
from nftbench.records import disk_budget
from nftbench.suites.schema import Suite

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configuration and tokenizer, as patterns of file names."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be audited."""

    place: str
    """Its folder or hub id."""
    architecture: str
    """`model_type` of its configuration."""
    parameters: int
    words: int
    """The size of its tokenizer's vocabulary."""
    window: int
    """The most tokens of one input."""


def examine(place: str, revision: str | None = None) -> Checkpoint:
    """Look at a folder, a GGUF file or a hub id (`organisation/name`) without reading a weight.

    Raises:
        NftbenchError: it is none of these, its architecture is unknown or no causal LM, it has no tokenizer, it is an
            adapter, its weights are pickled, damaged or lack a tensor, or the hub cannot be asked.
    """
    if not pinning.is_on_hub(place):
        return _examine(place, Path(place))
    with tempfile.TemporaryDirectory(prefix="nftbench-") as folder:
        fill_skeleton(place, Path(folder), revision)
        return _examine(place, Path(folder))


def check_base(suite: Suite) -> None:
    """Refuse a given base on which every cell would fail.

    Raises:
        NftbenchError: as in `examine`; or its weights are not finite, its window is shorter than a block of the
            suite's text, or its chat template cannot be used.
    """
    given = suite.given
    if given is None:
        return
    found = examine(given.path, given.revision)
    if found.window < suite.corpus.block:
        raise NftbenchError(
            f"{given.path} reads {found.window} tokens at once, and corpus.block is {suite.corpus.block}; set a "
            "shorter block"
        )
    if Path(given.path).is_dir():
        _check_finite(Path(given.path))
        if given.apply_chat_template:
            chat.check(networks.load_tokenizer(Path(given.path)), given.path)


def _examine(place: str, path: Path) -> Checkpoint:
    if gguf.is_file(path):
        header = gguf.header(path)
        return Checkpoint(place, header.architecture, header.parameters, header.words, header.window)
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise NftbenchError(f"{place!r} holds no model: it lacks a config.json")
    try:
        model = networks.load(path, "meta")
    except NftbenchError as error:
        raise NftbenchError(str(error).replace(str(path), place)) from error
    if model.tokenizer is None:
        raise NftbenchError(f"{place!r} has no tokenizer (tokenizer.json)")
    if not networks.is_causal(model.network):
        kind = model.network.config.model_type
        raise NftbenchError(f"{place!r} is no causal LM: {kind} reads text in both directions")
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Checkpoint(place, model.network.config.model_type, parameters, len(model.tokenizer), window(model))


def _check_finite(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file is no mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise NftbenchError(f"{folder}: holds weights that are not finite: {name} in {path.name}")


def fill_skeleton(repository: str, folder: Path, revision: str | None = None) -> None:
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
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise NftbenchError(f"{repository}: the hub has not answered for it: {reason}") from error


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


# ---------------------------------------------------------------------------------------------------- memory and disk


def memory_of(device: Device) -> float:
    """Bytes of memory that this machine, or its card, has in all."""
    if device.kind == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(str(device)).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def free_on_disk(folder: Path) -> float:
    """Bytes that are free where a folder lies, or will lie."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def workers_that_fit(asked: int | None, usual: int, needed: float, device: Device) -> int:
    """How many workers memory allows: as many as asked for, or else at most the usual number.

    `needed` are the bytes of one worker.

    Raises:
        NftbenchError: not even one fits, or fewer than were asked for.
    """
    there = memory_of(device)
    fit = int(there // needed)
    if fit < (asked or 1):
        many = f"{asked} workers need" if asked is not None and asked > 1 else "a worker needs"
        advice = f"; --jobs {fit} would fit" if fit else "; a machine with more memory is needed"
        total = needed * (asked or 1)
        raise NftbenchError(f"too little memory: {many} about {_size(total)}, and there are {_size(there)}{advice}")
    return asked or min(usual, fit)


def check_disk(grows: float, least: float, passing: float, folder: Path) -> None:
    """Refuse a run whose releases do not fit on the disk, or not into the budget of --cache-size.

    Args:
        grows: bytes by which the cache grows if nothing is deleted.
        least: bytes of it that must be there at one time.
        passing: bytes beside it while jobs run.

    Raises:
        NftbenchError: names the folder and the sizes, and what would fit.
    """
    free, limit = free_on_disk(folder), disk_budget.budget()
    if limit is not None and limit < least:
        raise NftbenchError(
            f"--cache-size {_size(limit)} is too little: jobs need models of {_size(least)} at one time; "
            f"--cache-size {_rounded(least)} would fit"
        )
    there = disk_budget.size(folder) if limit is not None else 0
    needed = passing + (grows if limit is None else min(grows, max(limit - there, least)))
    if free >= needed:
        return
    room = free - passing + disk_budget.size(folder)
    advice = f"--cache-size {_rounded(least)} would fit, or " if limit is None and room > 1.1 * least else ""
    raise NftbenchError(
        f"too little disk: the cache {folder} grows by about {_size(needed)}, and {_size(free)} are free; {advice}"
        "choose another folder with --cache"
    )


def _rounded(least: float) -> str:
    """A size as --cache-size takes it, not below `least`."""
    return f"{math.ceil(least / 1e8) / 10:g}GB"


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
