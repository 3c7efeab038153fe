"""Pins a given base model: the content that a suite's `model.path` means today, as a hash or a commit.

Every key depends on this pin and none on the path. So a folder may move, and other weights under an old path are
another model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nftbench.errors import NftbenchError
from nftbench.records.identity import digest, file_hash
from nftbench.suites.schema import GivenModel, Suite

READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""The files of a model's folder that are read, as patterns."""
GGUF = ".gguf"
"""How the name of a GGUF file ends."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def pinned(suite: Suite) -> Suite:
    """The suite with the hash or the commit of its given base; a suite that pre-trains its base is returned as it is.

    Raises:
        NftbenchError: there is no such checkpoint, it is not the one that the suite pins, or the hub cannot be asked.
    """
    given = suite.given
    if given is None:
        return suite
    if is_on_hub(given.path):
        pin = {"revision": commit(given.path, given.revision)}
    else:
        if given.revision is not None:
            raise NftbenchError(f"model.revision is for models on the hub, and {given.path} is a file or a folder")
        pin = {"sha256": content_hash(Path(given.path))}
        if given.sha256 is not None and given.sha256 != pin["sha256"]:
            raise NftbenchError(
                f"model.path: {given.path} has the hash {pin['sha256']}, and the suite asks for {given.sha256}"
            )
    return suite.model_copy(update={"model": {**suite.model, **pin}})


def pin(given: GivenModel) -> Sequence[Any]:
    """The value in keys for a given base that is pinned. The path of local files is no part of it."""
    content = [given.sha256] if given.sha256 is not None else [given.path, given.revision]
    settings = {"chat template": given.apply_chat_template, given.dtype: given.dtype != "float32"}
    return [*content, *(name for name, is_set in settings.items() if is_set)]


def with_architecture(suite: Suite) -> Suite:
    """The suite with the fields of its given base's configuration in `model`, for defenses that look at its sizes.

    They are there for a folder alone.
    """
    config = Path(suite.given.path, "config.json") if suite.given is not None else None
    if config is None or not config.is_file():
        return suite
    return suite.model_copy(update={"model": {**json.loads(config.read_text(encoding="utf-8")), **suite.model}})


def is_on_hub(path: str) -> bool:
    """Whether a path names a model of the hub and nothing on this machine.

    Raises:
        NftbenchError: it names neither, or a file of another kind.
    """
    place = Path(path)
    if place.is_dir() or (place.is_file() and place.suffix == GGUF):
        return False
    if place.is_file():
        raise NftbenchError(
            f"{path!r} is a file whose name does not end in {GGUF}; give a folder or a GGUF file, its parts joined"
        )
    if path.endswith(GGUF):
        raise NftbenchError(f"{path}: there is no such file")
    if HUB_ID.fullmatch(path) is None:
        raise NftbenchError(f"{path!r} is neither a folder nor a hub id (organisation/name), nor a GGUF file")
    return True


def unanswered(repository: str, error: Exception) -> NftbenchError:
    """What to say of a model that the hub has not given."""
    reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return NftbenchError(
        f"{repository}: the hub has not answered for it: {reason.rstrip('.')}; download it where there is network, "
        f"with `hf download {repository}` (after `hf auth login` if access is granted on request), or give its folder"
    )


def content_hash(place: Path) -> str:
    """Hash of a GGUF file, or of the files of a folder that are read: their names and contents."""
    if place.is_file():
        return file_hash(place)
    files = sorted({file for pattern in READ for file in place.glob(pattern)})
    return digest([[file.name, file_hash(file)] for file in files])


def commit(path: str, revision: str | None) -> str:
    """The commit of a model on the hub: asked there, or without network as the hub's own cache knows it.

    Raises:
        NftbenchError: neither knows it.
    """
    import huggingface_hub

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return str(huggingface_hub.HfApi().model_info(path, revision=revision).sha)
    except Exception as error:  # the errors of the hub and of its transport share no base class
        kept = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
        if isinstance(kept, str):
            return Path(kept).parent.name
        raise unanswered(path, error) from error
