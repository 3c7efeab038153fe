"""Text tasks: an lm-eval YAML file becomes a `Task`. The one place that imports lm_eval.

Documents are rendered and metrics computed by lm-eval's own functions; only the forward passes are ours. So every
number found here can be checked by running lm-eval on the saved release.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.utils
import numpy as np
import yaml
from lm_eval.api.metrics import mean
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.models.utils import resolve_max_length
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor, nn

from nftbench.contract import Measurement, Model, Split, Task, TaskContext
from nftbench.data import loglikelihood as requests, sources
from nftbench.data.loglikelihood import Batch, Encoder, Pair, Planner
from nftbench.data.splits import Document, Indices, Scorer, TextSplit
from nftbench.errors import NftbenchError, suggest
from nftbench.terms import SplitName

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 2000
"""The slice of train that stands in for a missing validation split."""
CLASSES_NEED = 32
"""Documents from which on a sample of one class is an error too: it is no longer luck."""
OUTPUT_TYPES = ("multiple_choice", "loglikelihood")


class Drawn(NamedTuple):
    """Rows of one split, before they are rendered."""

    rows: list[Mapping[str, Any]]
    whole: bool
    """No limit left any out."""


# lm-eval compiles a template for every document anew, which takes longer than rendering it.
lm_eval.utils.env.from_string = functools.lru_cache(maxsize=256)(lm_eval.utils.env.from_string)


# -------------------------------------------------------------------------------------------------------------- tasks


def window(model: Model) -> int:
    """How many tokens lm-eval lets a model read at once."""
    return int(resolve_max_length(model.network.config, model.tokenizer))


@dataclass(frozen=True)
class TextTask(Task):
    """An lm-eval task: what is fine-tuned on is its rendered prompt and target, what is scored is its own metric.

    Args:
        path: its YAML file.
        num_fewshot: solved examples in the prompt; None for what the file says.
        metric: which of the file's metrics is the score; None for the first.
    """

    path: Path
    num_fewshot: int | None = None
    metric: str | None = None

    @property
    def trainable(self) -> bool:
        """False where the file names no training split, or scores the one that it names."""
        config = _read(self.path, functions=False)
        return config.get("training_split") not in (None, _scored(config))

    def load(self, context: TaskContext) -> LoadedTextTask:
        """Read the documents, render them, and encode them for `context.model`.

        Raises:
            NftbenchError: the file is no such task; its data are missing, damaged, empty or all of one class.
        """
        model = context.model
        if model.tokenizer is None:
            raise NftbenchError(f"{self.path}: a text task needs a model with a tokenizer")
        config = self._config(context)
        length = window(model)
        encoder = Encoder(model.tokenizer, length)
        planner = Planner(length, len(model.tokenizer), model.network.device)
        with _quiet():
            documents = sources.load(config, _needed(config, self.trainable), _scored(config), context.data)
            task = _build(config, documents.splits)
            scorer = _scorer(task, self.metric)
            splits = {
                name: TextSplit(name, _render(config, task, drawn, name), scorer, encoder, planner)
                for name, drawn in _draw(config, task, context, self.trainable).items()
            }
            for split in splits.values():
                split.prepare()
        return LoadedTextTask(self.path, self.num_fewshot, self.metric, splits, _provenance(config, documents, splits))

    def split(self, name: SplitName) -> TextSplit:
        raise NftbenchError(f"{self.path}: load the task before its {name} split is asked for")

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean over the answers' tokens."""
        return requests.loss(network, batch)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """The last hidden state [tokens, width] wherever a token of an answer comes next."""
        return requests.features(network, batch)

    def targets(self, network: nn.Module, batch: Batch) -> Tensor:
        """The answers' tokens, one-hot [tokens, vocabulary]: what the output head is for."""
        head = network.get_output_embeddings()  # type: ignore[operator]
        return nn.functional.one_hot(batch.targets, head.weight.shape[0]).to(head.weight)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        """The task's own metric, as lm-eval computes it; `loss` is the mean over documents."""
        assert isinstance(split, TextSplit)
        return split.scorer.measure(split, split.likelihoods(network))

    def _config(self, context: TaskContext) -> dict[str, Any]:
        config = _read(self.path)
        if self.num_fewshot is not None:
            config["num_fewshot"] = self.num_fewshot
        config["num_fewshot"] = config.get("num_fewshot") or 0
        if not config["num_fewshot"]:
            # Without examples lm-eval would still read all of train to draw them from.
            config["fewshot_config"] = {"split": None, "samples": []}
        told = {"grammar": context.suite.corpus.grammar + context.seed, "data": context.data and str(context.data)}
        metadata = config.setdefault("metadata", {})
        if not isinstance(metadata, dict):  # some old files have a list
            metadata = config["metadata"] = {"_metadata": metadata}
        metadata.update({key: value for key, value in told.items() if key in metadata})
        return config


@dataclass(frozen=True)
class LoadedTextTask(TextTask):
    """A text task with its documents, encoded for one model."""

    splits: Mapping[SplitName, TextSplit] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where the documents came from, how many they are, and a hash of each split."""

    def split(self, name: SplitName) -> TextSplit:
        if name not in self.splits:
            raise NftbenchError(f"{self.path}: there is no {name} split; it is a utility task")
        return self.splits[name]

    def documents(self) -> Mapping[str, Any]:
        return self.provenance


def loglikelihoods(network: nn.Module, split: TextSplit) -> list[tuple[tuple[float, bool], ...]]:
    """What lm-eval calls the documents' responses: each choice's log-likelihood, and whether it is greedy."""
    return split.responses(split.likelihoods(network))


# ----------------------------------------------------------------------------------------------------- lm-eval's tasks


def _read(path: Path, *, functions: bool = True) -> dict[str, Any]:
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=functions)
    except FileNotFoundError as error:
        raise NftbenchError(f"{path}: no such task file ({error.filename})") from None
    except (yaml.YAMLError, ValueError, ImportError, AttributeError) as error:
        raise NftbenchError(f"{path}: {' '.join(str(error).split())}") from error
    known = [item.name for item in fields(TaskConfig)]
    for key in config:
        if key not in known:
            raise NftbenchError(f"{path}: unknown key {key!r}{suggest(key, known)}")
    if config.get("output_type") not in OUTPUT_TYPES:
        raise NftbenchError(
            f"{path}: output_type is {config.get('output_type', 'generate_until')}; "
            f"nftbench trains on and scores {' and '.join(OUTPUT_TYPES)}"
        )
    for key in ("doc_to_image", "doc_to_audio", "filter_list"):
        if config.get(key) is not None:
            raise NftbenchError(f"{path}: {key} is not supported")
    for entry in config.get("metric_list") or ():
        _check_metric(path, entry, own=config.get("process_results") is not None)
    return config


def _check_metric(path: Path, entry: Mapping[str, Any], *, own: bool) -> None:
    metric = entry.get("metric")
    # lm-eval would look for an unknown metric on the hub.
    if isinstance(metric, str) and not own and not entry.get("hf_evaluate") and metric not in METRIC_REGISTRY:
        raise NftbenchError(f"{path}: unknown metric {metric!r}{suggest(metric, list(METRIC_REGISTRY.keys()))}")


def _scored(config: Mapping[str, Any]) -> str:
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise NftbenchError(f"task {config.get('task')}: names neither test_split nor validation_split")
    return str(split)


def _selected(config: Mapping[str, Any]) -> str | None:
    """The split to select on: the task's own validation split, where that is neither scored nor trained on."""
    split = config.get("validation_split")
    return None if split in (_scored(config), config.get("training_split")) else split


def _needed(config: Mapping[str, Any], trainable: bool) -> list[str]:
    named: list[str | None] = [_scored(config)]
    if trainable:
        named += [config["training_split"], _selected(config)]
    if config["num_fewshot"]:
        shown = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
        named.append(shown or config.get("training_split") or config.get("validation_split"))
    return list(dict.fromkeys(split for split in named if split is not None))


def _build(config: Mapping[str, Any], splits: datasets.DatasetDict) -> Any:
    """lm-eval's task over these documents."""
    scored = _scored(config)
    if len(splits[scored]) == 0:
        raise NftbenchError(f"task {config.get('task')}: split {scored!r} is empty")
    try:
        return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
    except Exception as error:  # templates, filters and metrics raise what they like
        raise NftbenchError(f"task {config.get('task')}: {type(error).__name__}: {error}") from error


def _scorer(task: Any, wanted: str | None) -> Scorer:
    """The wanted metric, or the first that the file lists; accuracy where it lists none."""
    aggregations = task.aggregation()
    metric = wanted or (next(iter(aggregations)) if task.config.metric_list else "acc")
    if metric not in aggregations:
        raise NftbenchError(f"task {task.config.task}: has no metric {metric!r}{suggest(metric, list(aggregations))}")
    aggregate = aggregations[metric]
    return Scorer(task, metric, aggregate, bool(task.higher_is_better()[metric]), is_mean=aggregate is mean)


def _draw(config: Mapping[str, Any], task: Any, context: TaskContext, trainable: bool) -> dict[SplitName, Drawn]:
    """The rows of each split: test as lm-eval's `--limit` cuts it, the others at random."""
    budget, seed = context.suite.budget, context.seed
    test = task.eval_docs
    most = budget.max_test_documents if trainable else budget.max_utility_documents
    drawn: dict[SplitName, Drawn] = {"test": _cut(test, np.arange(len(test)), most, context)}
    if not trainable:
        return drawn
    train = task.training_docs()
    order = np.random.default_rng([seed, 1]).permutation(len(train))
    if _selected(config) is not None:
        validation = task.validation_docs()
        chosen = np.random.default_rng([seed, 2]).permutation(len(validation))
    else:
        count = min(math.ceil(VALIDATION_SHARE * len(train)), VALIDATION_MOST)
        validation, chosen, order = train, order[:count], order[count:]
    drawn["train"] = _cut(train, order, budget.max_train_documents, context)
    # As a sample, like a limited split, it may be of one class by luck.
    drawn["validation"] = _cut(validation, chosen, budget.max_validation_documents, context)._replace(whole=False)
    return drawn


def _cut(rows: Any, order: Indices, most: int | None, context: TaskContext) -> Drawn:
    limits = [limit for limit in (most, context.limit) if limit is not None]
    kept = np.sort(order[: min(limits, default=None)])
    return Drawn(_rows(rows, kept.tolist()), whole=len(kept) == len(order))


def _rows(rows: Any, kept: list[int]) -> list[Mapping[str, Any]]:
    if not isinstance(rows, datasets.Dataset):
        return [rows[index] for index in kept]
    columns = rows[kept]  # a row at a time takes ten times as long
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _render(config: Mapping[str, Any], task: Any, drawn: Drawn, name: SplitName) -> list[Document]:
    """The documents as lm-eval's `build_all_requests` renders them.

    Raises:
        NftbenchError: there are none, one cannot be rendered or its label is no choice, or all have one label.
    """
    where = f"task {config.get('task')}: {name}"
    if not drawn.rows:
        raise NftbenchError(f"{where} split is empty")
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    documents = []
    for index, row in enumerate(drawn.rows):
        try:
            documents.append(_document(task, row, index))
        except Exception as error:  # templates and a task's own functions raise what they like
            raise NftbenchError(f"{where} document {index}: {type(error).__name__}: {error}") from error
    answers = {document.pairs[document.gold[0]].continuation for document in documents}
    if task.multiple_input:
        answers = {str(document.gold) for document in documents}
    if len(answers) == 1 and (drawn.whole or len(documents) >= CLASSES_NEED):
        raise NftbenchError(f"{where} split has one class only: every answer is {answers.pop()!r}")
    return documents


def _document(task: Any, row: Mapping[str, Any], index: int) -> Document:
    context = task.fewshot_context(
        row,
        num_fewshot=task.config.num_fewshot,
        system_instruction=None,
        apply_chat_template=False,
        fewshot_as_multiturn=False,
        chat_template=None,
        gen_prefix=task.doc_to_prefix(row),
    )
    built = task.construct_requests(doc=row, ctx=context, metadata=(task.config.task, index, 1))
    pairs = tuple(Pair(*request.args) for request in (built if isinstance(built, list) else [built]))
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document(row, pairs, 1, (0,))
    unconditional = "acc_mutual_info" in task.aggregation()
    choices = len(pairs) // 2 if unconditional else len(pairs)
    return Document(row, pairs, choices, _gold(task, row, choices))


def _gold(task: Any, row: Mapping[str, Any], choices: int) -> tuple[int, ...]:
    answer = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
    answers = answer if isinstance(answer, list) else [answer]
    if any(isinstance(item, str) for item in answers):
        texts = task.doc_to_choice(row)
        answers = [texts.index(item) if item in texts else item for item in answers]
    if not answers or not all(isinstance(item, int) and 0 <= item < choices for item in answers):
        raise ValueError(f"label {answer!r} is none of {choices} choices")
    return tuple(answers)


def _provenance(
    config: Mapping[str, Any], documents: sources.Documents, splits: Mapping[SplitName, TextSplit]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": config.get("task"),
        "version": config["metadata"].get("version"),
        "source": documents.source,
        "splits": {name: {"documents": len(split), "sha256": _sha256(split)} for name, split in splits.items()},
    }
    if documents.held_out is not None:
        found["test"] = f"{documents.held_out:g} of {config['training_split']}, held out: the files have no test split"
    return found


def _sha256(split: TextSplit) -> str:
    digest = hashlib.sha256()
    for document in split.documents:
        digest.update(repr((document.pairs, document.gold)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's and datasets' log lines and bars: a task that loads has nothing to say to the user."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bar()
