"""The workspace of a run: its plan and folders, and the corpus and tasks of each seed, which all parties share."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nftbench.contract import Corpus, Model, Split, Task, WrappedTask
from nftbench.data import chat, corpus
from nftbench.data.corpus import Held, Texts
from nftbench.data.lm_eval_tasks import LoadedTextTask, TextTask
from nftbench.data.window import window
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import registry, task_files
from nftbench.planning.keys import corpus_key
from nftbench.planning.plan import Plan
from nftbench.records.identity import digest
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running import activity, given_base, isolation
from nftbench.suites.schema import Suite
from nftbench.terms import SplitName


@dataclass(frozen=True)
class Workspace:
    """A plan, the folders that its jobs write to, and the command that started the run."""

    plan: Plan
    store: Store
    command: str = ""
    trust_code: bool = False
    """Whether releases that only their owner's code can open are measured, by running that code unconfined."""

    @property
    def suite(self) -> Suite:
        return self.plan.suite

    @property
    def device(self) -> Device:
        return self.plan.device

    def seed_of(self, role: str, base_seed: int) -> int:
        """The seed of what a role draws itself.

        It depends on the salt: an owner who knew the attacker's draws could make a release that resists just these.
        """
        return networks.derive(base_seed, role, *filter(None, [self.suite.salt]))

    @property
    def documents(self) -> tuple[Path, ...]:
        """The folders and files with data sets, whose test documents and scored text plugins must not read.

        Files that a task names by itself, and text for which there is no --data, may lie anywhere.
        """
        suite, data = self.suite, self.plan.data
        told = (name for defense in self.plan.defenses.values() for name in defense.told)
        names = {Spec.parse(text).name for text in (*suite.tasks, *suite.benign, *suite.utility, *told)}
        paths = [registry.find("tasks", name).text_file for name in sorted(names)]
        files = [file for path in paths if path for file in task_files.data_files(data, task_files.settings(path))]
        patterns = filter(None, (suite.corpus.train, suite.corpus.heldout) if suite.corpus.source == "text" else ())
        files += [file for pattern in patterns for file in (data or Path()).glob(pattern)]
        return (*isolation.documents(data), *files)

    def reference(self, defense: Spec, seed: int) -> tuple[Spec, str | None]:
        """The row that a defense is compared with, and the key of its release; None where the plan has none."""
        name = self.plan.rows[defense].reference
        return Spec.parse(name), self.plan.releases.get((name, seed))


def make_corpus(workspace: Workspace, seed: int, held: Held = "heldout") -> Corpus:
    """The packed corpus of a base seed; built if the cache lacks it.

    Args:
        held: which text is its `heldout`: that of owners and attackers, or the scored text, which is the referee's.

    Raises:
        NftbenchError: the suite's models read no text.
    """
    if workspace.suite.corpus.source == "none":
        raise NftbenchError(f"{workspace.suite.name} has no corpus: its models read no text")
    key = corpus_key(workspace.suite, seed, workspace.plan.data)[:32]

    def build() -> Texts:
        activity.tell(f"makes the text of seed {seed}")
        return corpus.build(workspace.suite, seed, workspace.plan.data, _words(workspace))

    return _load_corpus(workspace.store, key, held, build)


def _words(workspace: Workspace) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the given base, which the corpus is stored in; None where the corpus makes its own."""
    if workspace.suite.given is None:
        return None
    return networks.load_tokenizer(given_base.folder(workspace.store, workspace.suite))


def load_task(workspace: Workspace, spec: Spec, seed: int, model: Model) -> Task:
    """A task of a base seed, loaded and encoded for the model. The process keeps it for its next cells.

    Raises:
        NftbenchError: the task cannot be loaded, or all choices of its questions have the same tokens.
    """
    plan = workspace.plan
    reader: list[Any] | None = None
    if model.tokenizer is not None:
        reader = [_vocabulary(model.tokenizer), window(model), chat.rules(plan.suite, model.tokenizer)]
    wanted = digest(str(spec), seed, reader, str(workspace.device), plan.limit, plan.data, _data_settings(plan))
    if wanted not in _tasks:
        if len(_tasks) >= 16:
            _tasks.pop(next(iter(_tasks)))
        path = registry.find("tasks", spec.name).text_file
        task: Task = registry.create("tasks", str(spec)) if path is None else TextTask(path, **dict(spec.parameters))
        slim = Model(model.network, model.tokenizer)
        text = functools.partial(make_corpus, workspace, seed, "scored")
        context = TaskSetting(slim, seed, workspace.suite, plan.data, plan.limit, text)
        loaded = task.load(context)
        if isinstance(loaded, LoadedTextTask) and not loaded.split("test").choices_differ():
            raise NftbenchError(f"{spec}: all choices have the same tokens: the model does not know their words")
        _tasks[wanted] = loaded
    return _tasks[wanted]


def forget_tasks() -> None:
    """Drop the tasks that `load_task` keeps for this process."""
    _tasks.clear()


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
        """The text in the model's own tokens: a checkpoint reads it by a tokenizer of its own."""
        tokenizer = self.model.tokenizer
        return self._corpus() if tokenizer is None else corpus.in_words_of(self._corpus(), tokenizer)


@dataclass(frozen=True)
class AttackersTask(WrappedTask):
    """A task without the splits that an attack, or a defense, must not see."""

    _hidden: tuple[SplitName, ...] = ("selection", "test")
    _reason: str = "the splits selection and test are for the referee alone"

    def split(self, name: SplitName) -> Split:
        if name in self._hidden:
            raise NftbenchError(self._reason)
        return self.task.split(name)


def _load_corpus(store: Store, key: str, held: Held, build: Callable[[], Texts]) -> Corpus:
    if (key, held) not in _corpora:
        folder = store.artifact("corpora", key) or store.make("corpora", key, lambda draft: corpus.save(build(), draft))
        if any(kept != key for kept, _ in _corpora):
            _corpora.clear()  # only one seed's corpus is kept: jobs run in the order of seeds
        _corpora[key, held] = corpus.load(folder, held)
    return _corpora[key, held]


_corpora: dict[tuple[str, Held], Corpus] = {}
_tasks: dict[str, Task] = {}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's words and rules. Kept, because hashing a large vocabulary takes tens of milliseconds."""
    count, known = _vocabularies.get(tokenizer, (-1, ""))
    if count != len(tokenizer):  # words may have been added
        known = digest(corpus.tokenization_rules(tokenizer))
        _vocabularies[tokenizer] = len(tokenizer), known
    return known


_vocabularies: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = weakref.WeakKeyDictionary()


def _data_settings(plan: Plan) -> list[Any]:
    """The parts of a suite that a loaded task depends on."""
    suite = plan.suite
    return [suite.salt, suite.corpus.model_dump(), suite.budget.model_dump(), suite.given is not None]
