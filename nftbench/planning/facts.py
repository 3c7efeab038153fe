"""Facts about defenses and attacks as plain data: all that planning, the referee and the proofs know about them.

A plugin that comes with nftbench is imported and asked here. One that was added, by a file or by another package, is
asked in a process of its own, and its answers come back as JSON. So its code never runs where records are made.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from nftbench.contract import Attack, Claim, Defense, Model, OwnerContext, Passes, Protected
from nftbench.errors import IN_CODE, NftbenchError, one_line, wrong
from nftbench.planning import registry
from nftbench.planning.registry import Kind, Plugin
from nftbench.records.spec import Spec
from nftbench.suites.schema import Budget, Suite
from nftbench.terms import Adaptation, Knowledge, Optimizer, Stage, TrainedWeights

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Question = Callable[[Any, Any], Any]
"""`(plugin, argument)` to an answer: a function of this module, which says in its annotations what an answer is."""
Describer = Callable[[Plugin, str, Question, Any], bytes]
"""`(plugin, spec, question, argument)` to the answer as JSON, given by the plugin in a process of its own."""

LABEL = re.compile(r"(?=.{1,40}\Z)[A-Za-z0-9()]+(?:[ +\-./][A-Za-z0-9()]+)*")
"""What a plugin may call itself. These characters need no escaping anywhere, and none looks like another alphabet's."""


def _parameter(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_parameter, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{value!r} must be a text, a number, True, False, None, or a tuple of these")


def _label(text: str) -> str:
    if not LABEL.fullmatch(text):
        raise ValueError(
            f"{text!r} is no label, which has at most 40 characters: letters A to Z, digits, brackets, single spaces "
            "and + - . / between"
        )
    return text


def _countable(passes: Passes) -> Passes:
    if not all(math.isfinite(number) and number >= 0 for number in dataclasses.astuple(passes)):
        raise ValueError(f"{passes} must hold finite numbers, at least 0")
    return passes


@dataclass(frozen=True)
class _Facts:
    name: str
    """The plugin's name."""
    parameters: Mapping[str, Annotated[Any, AfterValidator(_parameter)]]
    """All hyper-parameters, those at their defaults included."""
    changed: tuple[str, ...]
    """The names of the parameters that are not at their defaults."""

    @property
    def spec(self) -> Spec:
        """The plugin's spec in canonical form."""
        return Spec(self.name, tuple((name, self.parameters[name]) for name in self.changed))

    def __post_init__(self) -> None:
        if not all(name.isidentifier() for name in self.parameters) or not {*self.changed} <= self.parameters.keys():
            raise ValueError("the names of its parameters must be Python names")


@dataclass(frozen=True)
class DefenseFacts(_Facts):
    """What a defense says about itself. The fields are named as in `Defense`, where there is more about them."""

    stage: Stage
    claims: Claim | None
    trivial: bool
    keeps_secret: bool
    task_aware: bool
    releases_update: bool
    ratio: float | None
    scope: Literal["global", "per_tensor"]
    label: Annotated[str, AfterValidator(_label)] | None
    reference: str
    """Spec of the reference row."""
    control: str | None
    """Spec of the matched control."""
    told: tuple[str, ...]
    """Specs of the tasks that the defense may load, as it lists them."""
    deterministic: bool


@dataclass(frozen=True)
class AttackFacts(_Facts):
    """What an attack says about itself. The fields are named as in `Attack`, where there is more about them."""

    knowledge: frozenset[Knowledge]
    adaptation: Adaptation
    against: frozenset[str]
    uses_release: bool
    trains: bool
    optimizer: Optimizer | None
    trained_weights: TrainedWeights
    uses: tuple[str, ...]


class Described(Defense):
    """A defense as attacks and yardsticks see it in `applies`: its attributes and parameters, and none of its code."""

    stage: ClassVar[Stage] = "pretrain"  # each object has its own, as of all attributes

    def __init__(self, facts: DefenseFacts) -> None:
        own = {name: value for name, value in facts.parameters.items() if not hasattr(Defense, name)}
        vars(self).update(own, **{name: getattr(facts, name) for name in _ATTRIBUTES})
        self._facts = facts

    def reference_row(self) -> str:
        return self._facts.reference

    def control_row(self) -> str | None:
        return self._facts.control

    def told(self) -> tuple[str, ...]:
        return self._facts.told

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        raise NftbenchError(f"{self._facts.spec}: this is a description of the defense, which cannot protect")


def with_code(defense: Defense) -> Defense:
    """The defense that a description is of, whose code this process then imports; another defense as it is."""
    if not isinstance(defense, Described):
        return defense
    found: Defense = registry.create("defenses", str(defense._facts.spec))
    return found


_ATTRIBUTES = ("stage", "claims", "trivial", "keeps_secret", "task_aware", "releases_update", "ratio", "scope", "label")
"""The attributes of `Defense`."""


# ---------------------------------------------------------------------------------------------------------- questions


def defense(text: str) -> DefenseFacts:
    """The facts about the defense of a spec.

    Raises:
        NftbenchError: there is no such defense or parameter, or what it says about itself has the wrong type.
    """
    return _ask("defenses", text, _defense, Spec.parse(text).name)


def attack(text: str) -> AttackFacts:
    """The facts about the attack of a spec.

    Raises:
        NftbenchError: there is no such attack or parameter, or what it says about itself has the wrong type.
    """
    return _ask("attacks", text, _attack, Spec.parse(text).name)


def check(text: str, suite: Suite) -> None:
    """Ask a defense whether a suite can run it. It is not given the suite's salt.

    Raises:
        NftbenchError: the suite cannot.
    """
    _ask("defenses", text, _check, suite.model_copy(update={"salt": None}))


def fingerprint(text: str) -> str:
    """The hash of the files that a defense reads, as it says."""
    return _ask("defenses", text, _fingerprint, None)


def given_parameters(text: str) -> int | None:
    """The number of parameters of a release that a defense is given, as it says; None where it makes its release."""
    return _ask("defenses", text, _given_parameters, None)


def training_passes(text: str, suite: Suite) -> Passes:
    """How much a defense trains on a suite, as it says. It is not given the suite's salt.

    Args:
        suite: its `budget.max_train_documents` must be a number.
    """
    return _ask("defenses", text, _training_passes, suite.model_copy(update={"salt": None}))


def train_documents(text: str, budget: Budget) -> int | None:
    """How many of a task's training documents an attack takes under a budget; None for all."""
    return _ask("attacks", text, _train_documents, budget)


def declined(text: str, defenses: tuple[DefenseFacts, ...]) -> tuple[str | None, ...]:
    """Why an attack does not run against each of these defenses; None where it runs.

    Raises:
        NftbenchError: it does not give one answer for each.
    """
    answers = _ask("attacks", text, _declined, defenses)
    if len(answers) != len(defenses):
        raise NftbenchError(f"{text}: `applies` gave {len(answers)} answers about {len(defenses)} defenses")
    return answers


def _defense(plugin: Defense, name: str) -> DefenseFacts:
    return DefenseFacts(
        name,
        registry.parameters(plugin),
        registry.changed(plugin),
        **{name: getattr(plugin, name) for name in _ATTRIBUTES},
        reference=plugin.reference_row(),
        control=plugin.control_row(),
        told=plugin.told(),
        # `none` cannot say so: every published key depends on its file.
        deterministic=plugin.deterministic or name == "none",
    )


def _attack(plugin: Attack, name: str) -> AttackFacts:
    return AttackFacts(
        name,
        registry.parameters(plugin),
        registry.changed(plugin),
        knowledge=frozenset(plugin.knowledge),
        adaptation=plugin.adaptation,
        against=frozenset(plugin.against),
        uses_release=plugin.uses_release,
        trains=plugin.trains,
        optimizer=plugin.optimizer,
        trained_weights=plugin.trained_weights,
        uses=plugin.uses(),
    )


def _check(plugin: Defense, suite: Suite) -> None:
    plugin.check(suite)


def _fingerprint(plugin: Defense, _: None) -> str:
    return plugin.fingerprint()


def _given_parameters(plugin: Defense, _: None) -> Annotated[int, Field(ge=0)] | None:
    return plugin.given_parameters()


def _training_passes(plugin: Defense, suite: Suite) -> Annotated[Passes, AfterValidator(_countable)]:
    return plugin.training_passes(suite)


def _train_documents(plugin: Attack, budget: Budget) -> Annotated[int, Field(ge=1)] | None:
    return plugin.train_documents(budget)


def _declined(
    plugin: Attack, defenses: tuple[DefenseFacts, ...]
) -> tuple[Annotated[str, AfterValidator(one_line)] | None, ...]:
    return tuple(plugin.applies(Described(one)) for one in defenses)


# ------------------------------------------------------------------------------------------------------------- asking


def describe_by(describer: Describer | None) -> None:
    """From now on, let this describer ask added defenses and attacks; None if nothing can."""
    global _describer
    _describer = describer


_describer: Describer | None = None


def _ask(kind: Kind, text: str, question: Callable[[Any, Asked], Answer], argument: Asked) -> Answer:
    plugin = registry.find(kind, Spec.parse(text).name)
    if registry.may_import(plugin):
        return question(registry.create(kind, text), argument)
    if _describer is None:
        raise NftbenchError(
            f"{plugin}: it is not one of nftbench's own, and this command has no confined process to ask it in"
        )
    return _read(plugin, question, _describer(plugin, text, question, argument))


def _read(plugin: Plugin, question: Callable[[Any, Any], Answer], answer: bytes) -> Answer:
    """An added plugin's answer, if it is one.

    Raises:
        NftbenchError: it has another type than the question asks for, or is about another plugin.
    """
    try:
        found: Answer = _parsed(question, answer)
    except NftbenchError as error:
        raise NftbenchError(one_line(f"{plugin}: {error}")) from None
    if isinstance(found, _Facts) and found.name != plugin.name:
        raise NftbenchError(one_line(f"{plugin}: it describes another plugin, {found.name!r}"))
    return found


def _parsed(question: Callable[[Any, Any], Answer], answer: bytes) -> Answer:
    try:
        found: Answer = _reader(question).validate_json(answer, strict=True)
        return found
    except ValidationError as error:
        problem = error.errors()[0]
        asked = [question.__name__.strip("_")] if question not in (_defense, _attack) else []
        place = ".".join(map(str, (*asked, *problem["loc"])))
        raise NftbenchError(one_line(f"{place}: {wrong(problem, IN_CODE)}")) from None


def ask_here(kind: Kind, plugin: Any) -> None:
    """Ask a plugin object in this process what a plan asks of every plugin of its kind.

    Raises:
        NftbenchError: an answer has another type than the question asks for.
    """
    questions: Mapping[Kind, tuple[Question, ...]] = {
        "defenses": (_defense, _fingerprint, _given_parameters),
        "attacks": (_attack,),
    }
    for question in questions.get(kind, ()):
        _parsed(question, as_json(question, question(plugin, type(plugin).__name__)))


def as_json(question: Question, answer: Any) -> bytes:
    """An answer as `_read` takes it. A value of a wrong type is written as it is, for `_read` to refuse.

    Raises:
        TypeError: a value cannot be written.
    """
    plain = _reader(question).dump_python(answer, warnings=False)
    return json.dumps(plain, default=_listed).encode()


def _listed(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} must be a text, a number, True, False, None, or a tuple of these")


@functools.cache
def _reader(question: Callable[[Any, Any], Answer]) -> TypeAdapter[Answer]:
    return TypeAdapter(get_type_hints(question, include_extras=True)["return"])
