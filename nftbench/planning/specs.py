"""The one way to write each spec: known parameters only, defaults left out."""

from __future__ import annotations

from nftbench.errors import NftbenchError, suggest
from nftbench.planning import registry
from nftbench.records.spec import Spec

TEXT_PARAMETERS = ("metric", "num_fewshot")
"""What the spec of a text task may set: which of its metrics is the score, and solved examples in the prompt."""


def canonical(kind: registry.Kind, text: str) -> Spec:
    """The one way to write a spec: known parameters, defaults left out."""
    return registry.spec_of(Spec.parse(text).name, registry.create(kind, text))


def task_spec(text: str) -> Spec:
    """A text task takes what lm-eval's command line lets one choose; other tasks are dataclasses like all plugins."""
    spec = Spec.parse(text)
    if not registry.find("tasks", spec.name).is_text:
        return canonical("tasks", text)
    for key, _ in spec.parameters:
        if key not in TEXT_PARAMETERS:
            raise NftbenchError(f"{text!r}: a text task has no parameter {key!r}{suggest(key, TEXT_PARAMETERS)}")
    return Spec(spec.name, tuple(sorted(spec.parameters)))
