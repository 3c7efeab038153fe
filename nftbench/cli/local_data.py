"""Whether the folder of --data holds what a suite reads. Without this look, a run would fail hours later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.suites.schema import Suite


def check(suite: Suite, data: Path | None) -> None:
    """Look for the suite's text and for the documents of its tasks. Training data is looked for, and not read.

    Raises:
        NftbenchError: names every file or folder that is missing or empty, or the held-out text that cannot be divided
            into documents.
    """
    looks: list[Callable[[], None]] = [partial(_check_text, suite, data)] if suite.corpus.source == "text" else []
    if data is not None:
        looks += [partial(_check_task, name, data, trained) for name, trained in _tasks(suite).items()]
    wrong = []
    for look in looks:
        try:
            look()
        except NftbenchError as error:
            wrong.append(str(error))
    if wrong:
        raise NftbenchError("; ".join(wrong))


# ---------------------------------------------------------------------------------------------------------------- text


def _check_text(suite: Suite, data: Path | None) -> None:
    if data is None:
        raise NftbenchError(f"{suite.name}: its pre-training text is local: give the folder with --data")
    for pattern in (suite.corpus.train, suite.corpus.heldout):
        files = list(data.glob(pattern)) if pattern is not None else []
        if not files:
            raise NftbenchError(f"{suite.name}: corpus: no file matches {data / (pattern or '')}")
        for path in files:
            if not path.stat().st_size:
                raise NftbenchError(f"{suite.name}: corpus: {path} is empty")
    _check_documents(suite, data)


def _check_documents(suite: Suite, data: Path) -> None:
    """Divide the held-out text as a run does; in words, so that this takes a moment."""
    from nftbench.data import corpus

    place = str(data / (suite.corpus.heldout or ""))
    heldout = suite.corpus.model_copy(update={"train": suite.corpus.heldout, "block": 2})
    try:
        corpus.build(suite.model_copy(update={"corpus": heldout}), 0, data, corpus.word_tokenizer(()))
    except NftbenchError as error:
        said = str(error).removeprefix("corpus: ")
        raise NftbenchError(f"{suite.name}: corpus: {said if place in said else f'{place}: {said}'}") from None


# --------------------------------------------------------------------------------------------------------------- tasks


def _tasks(suite: Suite) -> dict[str, bool]:
    """The names of the suite's tasks, and whether attacks train on them."""
    from nftbench.planning.specs import task_spec

    attacked = {task_spec(text).name for text in (*suite.tasks, *suite.benign)}
    names = (task_spec(text).name for text in (*suite.tasks, *suite.benign, *suite.utility))
    return {name: name in attacked for name in names}


def _check_task(name: str, data: Path, trained: bool) -> None:
    from nftbench.planning import registry, task_files

    path = registry.find("tasks", name).text_file
    if path is None:
        return
    settings = task_files.settings(path)
    folder = task_files.find(data, settings)
    if folder is not None:
        _check_splits(name, folder, settings, trained=trained)


def _check_splits(task: str, folder: Path, settings: Mapping[str, Any], *, trained: bool) -> None:
    """Look for a file of each split that the task uses, as in `train.jsonl.xz`."""
    from nftbench.planning import task_files

    if not any(path.is_file() for path in folder.iterdir()):
        raise NftbenchError(f"{folder}: is empty; the data of task {task} should be in it")
    if settings.get("custom_dataset"):
        return  # a function of the task reads the folder, and says which file it lacks
    train = settings.get("training_split")
    metadata = settings.get("metadata")
    held_out = isinstance(metadata, dict) and metadata.get("held_out") is not None
    wanted = {train if held_out else settings.get("test_split") or settings.get("validation_split")}
    for split in sorted(filter(None, wanted | ({train} if trained else set()))):
        if task_files.split_file(folder, split) is None:
            raise NftbenchError(
                f"{folder}: task {task} reads its split {split!r} there, and no file is named {split} with one of the "
                f"endings {', '.join(task_files.SUFFIXES)}"
            )
