"""Text tasks: each is a `Task` made from an lm-eval YAML file. Only this module and `window` import lm_eval.

Documents are rendered and metrics computed by lm-eval's own functions, and only the forward passes are ours. Every
score can therefore be checked by running lm-eval on the saved release.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor, nn

from nftbench.contract import Measurement, Split, Task, TaskContext
from nftbench.data import chat, loglikelihood, sources
from nftbench.data.grammar import grammar_of
from nftbench.data.loglikelihood import Batch, Encoder, Pair, PassPlanner
from nftbench.data.splits import Document, Indices, Scorer, TextSplit
from nftbench.data.window import window
from nftbench.errors import NftbenchError, suggest
from nftbench.terms import SplitName

VALIDATION_SHARE, MAX_VALIDATION = 0.1, 2000
"""The share of the training rows, and the largest number of them, that replace a missing validation split."""
SURE_OF_CLASSES = 32
"""A random sample of at least this many documents must have several classes. Smaller ones may have one by chance."""
OUTPUT_TYPES = ("multiple_choice", "loglikelihood")


class SampledRows(NamedTuple):
    """The rows of one split that are used, before they are rendered."""

    rows: list[Mapping[str, Any]]
    complete: bool
    """Whether these are all rows of the split."""


# lm-eval compiles its templates again for every document, which takes longer than rendering them.
lm_eval.utils.env.from_string = functools.lru_cache(maxsize=256)(lm_eval.utils.env.from_string)


# -------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class TextTask(Task):
    """An lm-eval task. Attacks train on its rendered prompts and answers, and the score is its own metric.

    Args:
        path: the task's YAML file.
        num_fewshot: the number of solved examples in each prompt; None for the number in the file.
        metric: which of the file's metrics is the score; None for the first.
    """

    path: Path
    num_fewshot: int | None = None
    metric: str | None = None

    @property
    def trainable(self) -> bool:
        """Whether the file names a training split that is not also its test split."""
        config = _read(self.path, functions=False)
        return config.get("training_split") not in (None, _test_split(config))

    @property
    def choosing(self) -> SplitName:
        return "selection"

    def load(self, context: TaskContext) -> LoadedTextTask:
        """Read the documents, render them, and encode them for `context.model`.

        Raises:
            NftbenchError: the model has no tokenizer, the file is not a supported task, or its data are missing,
                damaged, empty or all of one class.
        """
        model, given = context.model, context.suite.given
        if model.tokenizer is None:
            raise NftbenchError(f"{self.path}: a text task needs a model with a tokenizer")
        template = (
            chat.template(model.tokenizer, given.path) if given is not None and given.apply_chat_template else None
        )
        config = self._config(context)
        length = window(model)
        encoder = Encoder(model.tokenizer, length)
        planner = PassPlanner(length, len(model.tokenizer), model.network.device)
        with _quiet():
            names = _used_splits(config, self.trainable)
            documents = sources.load(config, names, _test_split(config), context.data)
            task = _build(config, documents.splits)
            scorer = _scorer(self.path, task, self.metric)
            splits = {
                name: TextSplit(name, _render(config, task, sampled, name, template), scorer, encoder, planner)
                for name, sampled in _sample_splits(config, task, context, self.trainable).items()
            }
            for split in splits.values():
                split.prepare()
        return LoadedTextTask(self.path, self.num_fewshot, self.metric, splits, _provenance(config, documents, splits))

    def split(self, name: SplitName) -> TextSplit:
        raise NftbenchError(f"{self.path}: load the task before its {name} split is asked for")

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the answers' tokens, in nats per token."""
        return loglikelihood.loss(network, batch)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """The output head's inputs [tokens, width] at the positions that predict the answers' tokens."""
        return loglikelihood.features(network, batch)

    def targets(self, network: nn.Module, batch: Batch) -> Tensor:
        """The answers' tokens, one-hot [tokens, vocabulary], for a probe in the place of the output head."""
        head = network.get_output_embeddings()  # type: ignore[operator]
        return nn.functional.one_hot(batch.targets, head.weight.shape[0]).to(head.weight)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        """The task's own metric, as lm-eval computes it. `loss` is in nats per document."""
        assert isinstance(split, TextSplit)
        return split.scorer.measure(split, split.likelihoods(network))

    def _config(self, context: TaskContext) -> dict[str, Any]:
        config = _read(self.path)
        if self.num_fewshot is not None:
            config["num_fewshot"] = self.num_fewshot
        config["num_fewshot"] = config.get("num_fewshot") or 0
        if not config["num_fewshot"]:
            # Even for prompts without examples, lm-eval would read the whole training split to draw examples from.
            config["fewshot_config"] = {"split": None, "samples": []}
        metadata = config.setdefault("metadata", {})
        if not isinstance(metadata, dict):  # a list in some older task files
            metadata = config["metadata"] = {"_metadata": metadata}
        if "grammar" in metadata:
            metadata["grammar"] = grammar_of(context.suite, context.seed).seed
        if "data" in metadata:
            metadata["data"] = context.data and str(context.data)
        return config


@dataclass(frozen=True)
class LoadedTextTask(TextTask):
    """A text task with its documents, encoded for one model."""

    splits: Mapping[SplitName, TextSplit] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The source of the documents, and the size and hash of each split."""

    def split(self, name: SplitName) -> TextSplit:
        if name not in self.splits:
            raise NftbenchError(f"{self.path}: it has no {name} split, so it can only be a utility task")
        return self.splits[name]

    def documents(self) -> Mapping[str, Any]:
        return self.provenance


# ----------------------------------------------------------------------------------------------------- lm-eval's tasks


def _read(path: Path, *, functions: bool = True) -> dict[str, Any]:
    """The settings in a task file. `functions` says whether to import the functions that `!function` names.

    Raises:
        NftbenchError: the file is missing, damaged, or uses keys or metrics that are unknown or not supported.
    """
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
        _check_metric(path, entry, custom=config.get("process_results") is not None)
    return config


def _check_metric(path: Path, entry: Mapping[str, Any], *, custom: bool) -> None:
    """Raise NftbenchError for an unknown metric, which lm-eval would otherwise look for on the hub."""
    metric = entry.get("metric")
    if isinstance(metric, str) and not custom and not entry.get("hf_evaluate") and metric not in METRIC_REGISTRY:
        raise NftbenchError(f"{path}: unknown metric {metric!r}{suggest(metric, list(METRIC_REGISTRY.keys()))}")


def _test_split(config: Mapping[str, Any]) -> str:
    """The name of the split that is scored: the test split, or the validation split if there is no test split."""
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise NftbenchError(f"task {config.get('task')}: has neither test_split nor validation_split")
    return str(split)


def _validation_split(config: Mapping[str, Any]) -> str | None:
    """The name of the task's validation split, or None if that split is missing, scored or trained on."""
    split = config.get("validation_split")
    return None if split in (_test_split(config), config.get("training_split")) else split


def _used_splits(config: Mapping[str, Any], trainable: bool) -> list[str]:
    """The names of all splits whose documents are read, those of few-shot examples included."""
    names: list[str | None] = [_test_split(config)]
    if trainable:
        names += [config["training_split"], _validation_split(config)]
    if config["num_fewshot"]:
        examples = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
        names.append(examples or config.get("training_split") or config.get("validation_split"))
    return list(dict.fromkeys(name for name in names if name is not None))


def _build(config: Mapping[str, Any], splits: datasets.DatasetDict) -> Any:
    """lm-eval's task object over these documents."""
    scored = _test_split(config)
    if len(splits[scored]) == 0:
        raise NftbenchError(f"task {config.get('task')}: split {scored!r} is empty")
    try:
        return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})
    except Exception as error:  # templates, filters and metrics may raise errors of any class
        raise NftbenchError(f"task {config.get('task')}: {type(error).__name__}: {error}") from error


def _scorer(path: Path, task: Any, wanted: str | None) -> Scorer:
    """The wanted metric, else the first one that the file lists, else accuracy."""
    aggregations = task.aggregation()
    metric = wanted or (next(iter(aggregations)) if task.config.metric_list else "acc")
    if metric not in aggregations:
        raise NftbenchError(f"task {task.config.task}: has no metric {metric!r}{suggest(metric, list(aggregations))}")
    aggregate = aggregations[metric]
    return Scorer(path, task, metric, aggregate, bool(task.higher_is_better()[metric]), is_mean=aggregate is mean)


Essence = tuple[Path, Mapping[str, Any], datasets.Features, str]


def essence(scorer: Scorer) -> Essence:
    """What `scorer_again` needs to make a scorer in another process: file, a training document, its types, metric."""
    train = scorer.task.dataset[scorer.task.config.training_split]
    return scorer.path, train[0], train.features, scorer.metric


def scorer_again(path: Path, row: Mapping[str, Any], features: datasets.Features, metric: str) -> Scorer:
    """A scorer like the one whose `essence` it is given. Lm-eval's object then holds one training document and no
    other."""
    config = _read(path) | {"num_fewshot": 0, "fewshot_config": {"split": None, "samples": []}}
    rows = datasets.Dataset.from_list([row], features=features)
    with _quiet():
        names = _used_splits(config, trainable=True)
        return _scorer(path, _build(config, datasets.DatasetDict(dict.fromkeys(names, rows))), metric)


def _sample_splits(
    config: Mapping[str, Any], task: Any, context: TaskContext, trainable: bool
) -> dict[SplitName, SampledRows]:
    """The rows of each split within the budget: the first ones for test, as lm-eval's `--limit`, others at random.

    Validation and selection are equally large, and no row is in both. With a given base the test rows are drawn by the
    seed too: all seeds share the weights, and on the same rows an interval over seeds would leave out what the choice
    of rows does.
    """
    budget, seed = context.suite.budget, context.seed
    test = task.eval_docs
    most = budget.max_test_documents if trainable else budget.max_utility_documents
    scored = np.arange(len(test))
    if context.suite.given is not None and (most or len(test)) < len(test):
        scored = np.random.default_rng([seed, 3]).permutation(len(test))
    sampled: dict[SplitName, SampledRows] = {"test": _take(test, scored, most, context)}
    if not trainable:
        return sampled
    train = task.training_docs()
    order = np.random.default_rng([seed, 1]).permutation(len(train))
    if _validation_split(config) is not None:
        validation = task.validation_docs()
        chosen = np.random.default_rng([seed, 2]).permutation(len(validation))
    else:
        count = min(math.ceil(VALIDATION_SHARE * len(train)), MAX_VALIDATION)
        validation, chosen, order = train, order[:count], order[count:]
    sampled["train"] = _take(train, order, budget.max_train_documents, context)
    half = len(chosen) - len(chosen) // 2
    most = min(half, budget.max_validation_documents or half)
    parts: dict[SplitName, Indices] = {"validation": chosen[:most], "selection": chosen[most : 2 * most]}
    # Never complete: like every random sample they may have one class only by chance.
    return sampled | {
        name: _take(validation, part, None, context)._replace(complete=False) for name, part in parts.items()
    }


def _take(rows: Any, order: Indices, most: int | None, context: TaskContext) -> SampledRows:
    """The first rows of an order, within the budget and `--limit`, sorted by position."""
    limits = [limit for limit in (most, context.limit) if limit is not None]
    kept = np.sort(order[: min(limits, default=None)])
    return SampledRows(_rows(rows, kept.tolist()), complete=len(kept) == len(order))


def _rows(rows: Any, kept: list[int]) -> list[Mapping[str, Any]]:
    if not isinstance(rows, datasets.Dataset):
        return [rows[index] for index in kept]
    columns = rows[kept]  # reading row by row takes ten times as long
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _render(
    config: Mapping[str, Any], task: Any, sampled: SampledRows, name: SplitName, template: Template | None
) -> list[Document]:
    """Render the documents as lm-eval's `build_all_requests` does.

    Raises:
        NftbenchError: there are no documents, one cannot be rendered, a label is not among the choices, or all
            documents have the same answer.
    """
    where = f"task {config.get('task')}: {name}"
    if not sampled.rows:
        raise NftbenchError(f"{where} split is empty")
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    documents = []
    for index, row in enumerate(sampled.rows):
        try:
            documents.append(_document(task, row, index, template))
        except Exception as error:  # templates and a task's functions may raise errors of any class
            raise NftbenchError(f"{where} document {index}: {type(error).__name__}: {error}") from error
    answers = {document.pairs[document.gold[0]].continuation for document in documents}
    if task.multiple_input:
        answers = {str(document.gold) for document in documents}
    if len(answers) == 1 and (sampled.complete or len(documents) >= SURE_OF_CLASSES):
        raise NftbenchError(f"{where} split has one class only: every answer is {answers.pop()!r}")
    return documents


Template = Callable[..., str]
"""Puts messages into a chat template."""


def _document(task: Any, row: Mapping[str, Any], index: int, template: Template | None) -> Document:
    context = task.fewshot_context(
        row,
        num_fewshot=task.config.num_fewshot,
        system_instruction=None,
        apply_chat_template=template is not None,
        fewshot_as_multiturn=False,
        chat_template=template,
        gen_prefix=task.doc_to_prefix(row),
    )
    built = task.construct_requests(
        doc=row,
        ctx=context,
        metadata=(task.config.task, index, 1),
        apply_chat_template=template is not None,
        chat_template=template,
    )
    pairs = tuple(Pair(*request.args) for request in (built if isinstance(built, list) else [built]))
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document(row, pairs, 1, (0,))
    unconditional = "acc_mutual_info" in task.aggregation()
    choices = len(pairs) // 2 if unconditional else len(pairs)
    return Document(row, pairs, choices, _gold(task, row, choices))


def _gold(task: Any, row: Mapping[str, Any], choices: int) -> tuple[int, ...]:
    """The indices of the right choices, which a task gives as indices or as the choices' texts."""
    answer = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
    answers = answer if isinstance(answer, list) else [answer]
    if any(isinstance(item, str) for item in answers):
        texts = task.doc_to_choice(row)
        answers = [texts.index(item) if item in texts else item for item in answers]
    if not answers or not all(isinstance(item, int) and 0 <= item < choices for item in answers):
        raise ValueError(f"label {answer!r} is none of the {choices} choices")
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
    """Suppress log lines, warnings and progress bars of lm-eval and datasets, which do not concern the user."""
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
