"""An attacker whose sweeps are noted and not carried out: what an attack asks of its sweep."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from nftbench.contract import Model, Outcome, Task
from nftbench.running.attacker import Attacker
from nftbench.suites.schema import Budget


@dataclass(frozen=True)
class Asked:
    """One call of `sweep`: the network as it was then, the budget, and the other options."""

    network: Any
    budget: Budget
    options: dict[str, Any]


@dataclass(frozen=True)
class Watched(Attacker):
    """Notes every sweep in `asked`; its outcome is the network as it is, without a measurement."""

    asked: list[Asked] = field(default_factory=list)

    def sweep(self, model: Model, task: Task, **options: Any) -> Outcome:
        changes = {name: options.pop(name) for name in list(options) if name in Budget.model_fields}
        self.asked.append(Asked(copy.deepcopy(model.network), self.budget.model_copy(update=changes), options))
        return Outcome(model.network, None, None)  # type: ignore[arg-type]
