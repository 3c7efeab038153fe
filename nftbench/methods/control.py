"""The matched control of a defense: the same with some hyper-parameters changed, mostly its strength set to zero."""

from __future__ import annotations

import dataclasses

from nftbench.contract import Defense
from nftbench.records.spec import Spec


def changed(name: str, defense: Defense, **changes: object) -> str:
    """The spec of a defense with some hyper-parameters changed. `name` is the plugin's."""
    other = dataclasses.replace(defense, **changes)  # type: ignore[type-var]
    values = [(field.name, getattr(other, field.name), field.default) for field in dataclasses.fields(other)]  # type: ignore[arg-type]
    return str(Spec(name, tuple((key, value) for key, value, default in values if value != default)))
