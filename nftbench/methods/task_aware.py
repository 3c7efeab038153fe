"""What defenses against a known task have in common: the task's name, what they claim, and their matched control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nftbench.contract import Claim, Defense
from nftbench.errors import NftbenchError
from nftbench.methods.control import changed
from nftbench.methods.tuning import needs_text
from nftbench.suites import Suite
from nftbench.terms import Stage


@dataclass(frozen=True)
class AgainstTask(Defense):
    """A defense that trains on the documents of the task that it should resist. `harmful`: that task's spec (required).

    A plugin derives from it and adds its hyper-parameters and `protect`. The plugin's name is that of its module.
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))
    task_aware: ClassVar[bool] = True

    harmful: str = ""

    def told(self) -> tuple[str, ...]:
        return (self.harmful,) if self.harmful else ()

    def check(self, suite: Suite | None = None) -> None:
        """Refuse a defense that names no task, and a suite whose models read no text."""
        name = type(self).__module__.rpartition(".")[2]
        if not self.harmful:
            raise NftbenchError(f"{name} needs a harmful task: write {name}[harmful=…]")
        if suite is not None:
            needs_text(name, suite)

    def row(self, **changes: Any) -> str:
        """The spec of the row with some hyper-parameters changed."""
        return changed(type(self).__module__.rpartition(".")[2], self, **changes)
