"""A given checkpoint: any causal LM from a local folder or the hub, compared with its undefended counterpart.

A publisher can audit a release that was protected elsewhere by `checkpoint[path=protected,reference=base]`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nftbench import Claim, Defense, Model, NftbenchError, OwnerContext, Protected, Spec, Stage, Suite


@dataclass(frozen=True)
class Checkpoint(Defense):
    """`path` and `reference` are folders or hub ids (`organisation/name`). Without `reference` the row is its own
    reference."""

    stage: ClassVar[Stage] = "pretrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))

    path: str
    reference: str = ""

    def reference_row(self) -> str:
        return str(Spec("checkpoint", (("path", self.reference or self.path),)))

    def fingerprint(self) -> str:
        folder = Path(self.path)
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*")) if folder.is_dir() else ():
            if file.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja"):
                with file.open("rb") as opened:
                    digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    def given_parameters(self) -> int | None:
        from nftbench.methods import load

        if not Path(self.path).is_dir():
            return None  # the hub is asked when the cell runs
        return int(load(self.path, "meta").network.num_parameters())

    def check(self, suite: Suite) -> None:
        from nftbench.methods import load

        for place in filter(None, (self.path, self.reference)):
            if not Path(place).is_dir() and (place.count("/") != 1 or place.startswith((".", "/"))):
                raise NftbenchError(f"checkpoint: {place!r} is neither a folder nor a hub id (organisation/name)")
            if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
                raise NftbenchError(f"checkpoint: {place!r} holds no model: it lacks a config.json")
            if Path(place).is_dir():
                model = load(place, "meta")
                if model.tokenizer is None and suite.corpus.source != "none":
                    raise NftbenchError(f"checkpoint: {place!r} has no tokenizer (tokenizer.json)")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        from nftbench.methods import load

        return Protected(load(self.path, str(model.network.device), local=Path(self.path).is_dir()))
