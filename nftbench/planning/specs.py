"""The canonical form of specs: parameters are checked, and those at their defaults are left out."""

from __future__ import annotations

from nftbench.errors import NftbenchError, suggest
from nftbench.planning import facts, registry
from nftbench.records.spec import Spec

TEXT_PARAMETERS = ("metric", "num_fewshot")
"""The parameters of text tasks: the metric that is the score, and the number of solved examples in the prompt."""


def canonical(kind: registry.Kind, text: str) -> Spec:
    """The canonical form of a plugin's spec.

    Raises:
        NftbenchError: the plugin or a parameter is unknown, or a value is wrong.
    """
    if kind == "defenses":
        return facts.defense(text).spec
    if kind == "attacks":
        return facts.attack(text).spec
    return registry.spec_of(Spec.parse(text).name, registry.create(kind, text))


def task_spec(text: str) -> Spec:
    """The canonical form of a task's spec. Text tasks have the parameters `TEXT_PARAMETERS`.

    Raises:
        NftbenchError: the task or a parameter is unknown, or a value is wrong.
    """
    spec = Spec.parse(text)
    if registry.find("tasks", spec.name).text_file is None:
        return canonical("tasks", text)
    for key, _ in spec.parameters:
        if key not in TEXT_PARAMETERS:
            raise NftbenchError(f"{text!r}: a text task has no parameter {key!r}{suggest(key, TEXT_PARAMETERS)}")
    return Spec(spec.name, tuple(sorted(spec.parameters)))
