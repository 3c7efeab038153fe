"""Where and for what plan jobs run, and what lies ready there for every party: a seed's corpus and its tasks."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nftbench.contract import Corpus, Model, Split, Task, WrappedTask
from nftbench.data import corpus as corpora
from nftbench.data.lm_eval_tasks import LoadedTextTask, TextTask, window
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.keys import corpus_key
from nftbench.planning.plan import Plan
from nftbench.records.identity import digest
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.suites.schema import Suite
from nftbench.terms import SplitName


@dataclass(frozen=True)
class Workplace:
    """Where and for what plan jobs run."""

    plan: Plan
    store: Store
    command: str = ""

    @property
    def suite(self) -> Suite:
        return self.plan.suite

    @property
    def device(self) -> str:
        return self.plan.device


def derive(seed: int, *role: str) -> int:
    """A seed of its own for each role (init, pretrain, defense, attack, data), so that no two share a stream."""
    return int.from_bytes(hashlib.sha256("|".join([str(seed), *role]).encode()).digest()[:6], "big")


def make_corpus(place: Workplace, seed: int) -> Corpus:
    """The packed corpus of a base seed, from the cache.

    Raises:
        NftbenchError: the suite's models read no text.
    """
    if place.suite.corpus.source == "none":
        raise NftbenchError(f"{place.suite.name} has no corpus: its models read no text")
    key = corpus_key(place.suite, seed, place.plan.data)[:32]
    return _load_corpus(place.store, key, lambda: corpora.build(place.suite.corpus, seed, place.plan.data))


def load_task(place: Workplace, spec: Spec, seed: int, model: Model) -> Task:
    """A base seed's task, loaded and encoded for the model; kept for the process's next cells.

    Raises:
        NftbenchError: the task cannot be loaded, or the model's tokens do not tell its choices apart.
    """
    vocabulary = _vocabulary(model.tokenizer) if model.tokenizer is not None else ""
    plan, length = place.plan, window(model) if model.tokenizer is not None else None
    wanted = digest(str(spec), seed, vocabulary, length, place.device, plan.limit, plan.data, _data_settings(plan))
    if wanted not in _tasks:
        if len(_tasks) >= 8:
            _tasks.pop(next(iter(_tasks)))
        plugin = registry.find("tasks", spec.name)
        is_text = plugin.path is not None and plugin.path.suffix == ".yaml"
        task: Task = (
            TextTask(plugin.path, **dict(spec.parameters))
            if is_text and plugin.path
            else registry.create("tasks", str(spec))
        )
        slim = Model(model.network, model.tokenizer)
        context = TaskSetting(slim, seed, place.suite, plan.data, plan.limit, lambda: make_corpus(place, seed))
        loaded = task.load(context)
        if isinstance(loaded, LoadedTextTask) and not loaded.split("test").tells_apart():
            raise NftbenchError(f"{spec}: all choices have the same tokens: the model does not know their words")
        _tasks[wanted] = loaded
    return _tasks[wanted]


@dataclass(frozen=True)
class TaskSetting:
    """`TaskContext` of one model and base seed."""

    model: Model
    seed: int
    suite: Suite
    data: Path | None
    limit: int | None
    _corpus: Callable[[], Corpus]

    @property
    def corpus(self) -> Corpus:
        return self._corpus()


@dataclass(frozen=True)
class AttackersTask(WrappedTask):
    """A task as attackers, or the owner's defense, see it: without the splits that are not theirs."""

    _hidden: tuple[SplitName, ...] = ("test",)
    _reason: str = "the test split is scored once, by the referee"

    def split(self, name: SplitName) -> Split:
        if name in self._hidden:
            raise NftbenchError(self._reason)
        return self.task.split(name)


def _load_corpus(store: Store, key: str, build: Callable[[], Corpus]) -> Corpus:
    if key not in _corpora:
        folder = store.artifact("corpora", key) or store.make(
            "corpora", key, lambda draft: corpora.save(build(), draft)
        )
        _corpora.clear()  # one seed's corpus at a time: jobs come in the order of seeds
        _corpora[key] = corpora.load(folder)
    return _corpora[key]


_corpora: dict[str, Corpus] = {}
_tasks: dict[str, Task] = {}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's words and rules, once for each: a large vocabulary takes tens of milliseconds."""
    count, known = _vocabularies.get(tokenizer, (-1, ""))
    if count != len(tokenizer):  # words may have been added
        known = digest(corpora.reading_rules(tokenizer))
        _vocabularies[tokenizer] = len(tokenizer), known
    return known


_vocabularies: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = weakref.WeakKeyDictionary()


def _data_settings(plan: Plan) -> list[Any]:
    """The parts of a suite that a loaded task depends on."""
    return [plan.suite.corpus.model_dump(), plan.suite.budget.model_dump()]
