"""Smaller: a smaller model of the same family is released in place of the base. A trivial defense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage, Suite
from nftbench.methods import given_files, load


@dataclass(frozen=True)
class Smaller(Defense):
    """`path`: the folder or hub id (`organisation/name`) of the smaller model."""

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    path: str

    def fingerprint(self) -> str:
        return given_files.content(self.path)

    def given_parameters(self) -> int | None:
        return given_files.parameters(self.path)

    def check(self, suite: Suite) -> None:
        given_files.check(self.path)

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(load(self.path, str(model.network.device), local=Path(self.path).exists()))
