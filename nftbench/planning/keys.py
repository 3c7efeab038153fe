"""Keys: hashes of everything that can change a number, and of nothing else.

The key of a corpus is part of the key of a base model, which is part of the key of a release, which is part of the key
of a cell. Settings at their defaults are left out, so that keys stay the same if nftbench gets a new setting. A key
contains the versions of the core's areas and the source digests of plugins, but no versions of libraries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from nftbench.contract import Yardstick
from nftbench.device import Device
from nftbench.planning import facts, pinning, registry, task_files
from nftbench.planning.facts import AttackFacts, DefenseFacts
from nftbench.planning.plugin_sources import source_digest
from nftbench.planning.registry import Kind
from nftbench.planning.specs import task_spec
from nftbench.records import identity
from nftbench.records.identity import digest, file_hash
from nftbench.records.spec import Spec
from nftbench.suites.schema import Suite

Area = Literal["training", "attack", "evaluation"]
PluginSource = Callable[[Kind, str], str]


def plugin_source(kind: Kind, name: str) -> str:
    """The value in a key for the code of a plugin."""
    return source_digest(registry.find(kind, name))


def _version(area: Area) -> list[Any]:
    """The value in a key for the core's code of an area."""
    return [area, {"training": identity.TRAINING, "attack": identity.ATTACK, "evaluation": identity.EVALUATION}[area]]


def corpus_key(suite: Suite, seed: int, data: Path | None) -> str:
    """Key of a corpus. Only the corpus of the toy language depends on the seed, and on the salt.

    The text is stored in tokens. Those of a given base are its own, and it is then part of the key.
    """
    if suite.given is not None:
        own = suite.model_copy(update={"model": {}, "corpus": suite.corpus.model_copy(update={"vocabulary": None})})
        return digest("corpus of a given base", pinning.pin(suite.given), _text_key(own, seed, data))
    return _text_key(suite, seed, data)


def _text_key(suite: Suite, seed: int, data: Path | None) -> str:
    settings, version = suite.corpus, _version("training")
    if settings.source == "none":
        return digest("corpus", version, "none")
    if settings.source == "toy":
        fields = {"source", "sentences", "block", "heldout_blocks"}
        return digest(
            "corpus",
            version,
            settings.model_dump(include=fields, exclude_defaults=True),
            [suite.salt, settings.grammar + seed],
        )
    files = [
        path for pattern in (settings.train, settings.heldout) for path in sorted((data or Path()).glob(pattern or ""))
    ]
    content = [file_hash(path) for path in files] if settings.source == "text" else []
    described = settings.model_dump(exclude={"grammar", "sentences"}, exclude_defaults=True)
    return digest("corpus", version, described, content)


def base_key(suite: Suite, seed: int, data: Path | None, device: Device, source: PluginSource = plugin_source) -> str:
    """Key of the undefended model's pre-training run. The choice of checkpoints to keep is no part of it.

    A given base has one key for all seeds, recipes and texts.
    """
    if suite.given is not None:
        return digest("given base", _version("training"), pinning.pin(suite.given))
    recipe = _recipe(suite)
    if suite.pretraining.task is not None:
        task = _training_data(suite, (suite.pretraining.task,), data, source)
        recipe |= {"task": task, "only": suite.pretraining.only}
    corpus = corpus_key(suite, seed, data)
    return digest("base", _version("training"), suite.model, corpus, recipe, seed, device.kind)


def _recipe(suite: Suite) -> dict[str, Any]:
    """The values in a key for the recipe by which models are trained on text."""
    return suite.pretraining.model_dump(
        exclude={"checkpoints", "task", "only", "allowance", "timeout"}, exclude_defaults=True
    )


class Keys:
    """The keys of one plan's releases and cells. Parts that several keys have in common are computed once."""

    def __init__(
        self,
        suite: Suite,
        device: Device,
        data: Path | None,
        limit: int | None,
        defenses: Mapping[Spec, DefenseFacts],
        attacks: Mapping[Spec, AttackFacts],
        utility_after: Collection[Spec] = (),
        commits: Mapping[Spec, str] | None = None,
    ) -> None:
        self.suite, self.device, self.data, self.limit = suite, device, data, limit
        self.defenses, self.attacks, self.utility_after = defenses, attacks, utility_after
        self.commits = commits or {}
        self.plugins: dict[tuple[Kind, str], str] = {}
        """The source digest of each plugin that is in a key so far."""
        self.base = functools.cache(lambda seed: base_key(suite, seed, data, device, self.source))
        self.task_data = functools.cache(lambda task: _task_data(task, data))
        self.fingerprint = functools.cache(lambda spec: facts.fingerprint(str(spec)))
        self.budget = suite.budget.model_dump(exclude={"timeout", "tokens_at_once"}, exclude_defaults=True)

    def source(self, kind: Kind, name: str) -> str:
        """The value in a key for the code of a plugin."""
        if (kind, name) not in self.plugins:
            self.plugins[kind, name] = plugin_source(kind, name)
        return self.plugins[kind, name]

    def release(self, spec: Spec, seed: int) -> str:
        """Key of a defense's release."""
        defense, source = self.defenses[spec], self.source("defenses", spec.name)
        parts: list[Any] = [self.start(defense, seed), spec.name, defense.parameters, source, self.fingerprint(spec)]
        if spec in self.commits:
            parts.append(["commit", self.commits[spec]])
        if defense.told:
            tasks = _training_data(self.suite, defense.told, self.data, self.source)
            parts += [_version("evaluation"), tasks, self.limit, seed]
        return digest("release", *parts)[:32]

    def start(self, defense: DefenseFacts, seed: int) -> str:
        """The value in a key for what a defense starts from and draws by.

        The key of a pre-trained base has all of it in itself. A given base has nothing, and a deterministic defense
        then makes one release for all seeds.
        """
        base = self.base(seed)
        if self.suite.given is None:
            return base
        if defense.deterministic:
            return digest(base, self.device.kind)
        return digest(base, self.device.kind, corpus_key(self.suite, seed, self.data), _recipe(self.suite), seed)

    def cell(self, release: str, spec: Spec, task: Spec, seed: int, reference: str | None = None) -> str:
        """Key of the cell of one attack on one task.

        `reference` is the key of the reference row's release, which attacks with knowledge `base` are given.
        """
        attack = self.attacks[spec]
        others: list[Any] = []
        if attack.adaptation == "merging":
            others.append(_training_data(self.suite, self.suite.tasks, self.data, self.source))
        others += [self.built_on(text) for text in attack.uses]
        if reference is not None and "base" in attack.knowledge:
            others.append(["reference", reference])
        if spec in self.utility_after:
            others.append(["utility", *([str(one), *self.task(one)] for one in map(task_spec, self.suite.utility))])
        return digest(
            "cell",
            *([_version("attack")] if attack.trains else ()),
            _version("evaluation"),
            release,
            [spec.name, attack.parameters, self.source("attacks", spec.name), *others],
            [str(task), *self.task(task)],
            self.budget,
            self.limit,
            seed,
        )

    def task(self, task: Spec) -> list[Any]:
        """The values in a key for a task's code and its local data."""
        return [self.source("tasks", task.name), self.task_data(task)]

    def built_on(self, text: str) -> list[Any]:
        """The values in a key for an attack on which another attack is built."""
        attack = facts.attack(text)
        source, further = self.source("attacks", attack.name), [self.built_on(used) for used in attack.uses]
        return [attack.name, attack.parameters, source, *further]

    def reading(self, release: str, attack: Spec, task: Spec, seed: int, reference: str | None = None) -> str:
        """Key of a yardstick's measurement on a release; every yardstick may read the reference row's release too."""
        plugin: Yardstick = registry.create("yardsticks", str(task))
        source = self.source("yardsticks", task.name)
        used = _training_data(self.suite, plugin.uses(), self.data, self.source)
        yardstick = [str(attack), task.name, registry.parameters(plugin), source]
        versions = [_version("attack"), _version("evaluation")]
        others = [] if reference is None else [["reference", reference]]
        return digest("reading", *versions, *others, release, yardstick, used, self.budget, self.limit, seed)


def _training_data(suite: Suite, specs: tuple[str, ...], data: Path | None, source: PluginSource) -> list[Any]:
    """The values in a key for tasks whose training data is used: their code, their data, and the limit on documents."""
    tasks = [task_spec(text) for text in specs]
    content = [[str(task), source("tasks", task.name), _task_data(task, data)] for task in tasks]
    return [content, suite.budget.max_train_documents]


def _task_data(task: Spec, data: Path | None) -> list[str]:
    """Hashes of the local files that a task reads. A revision on the hub is part of the task's own source."""
    path = registry.find("tasks", task.name).text_file
    if path is None:
        return [registry.create("tasks", str(task)).fingerprint(data)]
    return [file_hash(file) for file in task_files.data_files(data, task_files.settings(path))]
