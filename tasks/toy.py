"""The documents of the toy tasks, generated once for each grammar and cached. The tasks are the files toy_*.yaml.

The cache is in $NFTBENCH_CACHE or ~/.cache/nftbench. Its files are named by hashes, so that their names do not give a
grammar away. Plain lm-eval can run the tasks, too:
`lm_eval run --include_path tasks --tasks toy_topic --metadata '{"grammar": 3}' …`, with the seed of the grammar.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets

from nftbench.methods import Grammar, grammar as language

COUNTS: Mapping[Literal["train", "validation", "test"], int] = {"train": 4000, "validation": 2000, "test": 2000}


def documents(task: str, grammar: int = 0, **_: Any) -> datasets.DatasetDict:
    """All splits of one task. lm-eval passes the file's `metadata` as arguments and adds keys of its own."""
    toy = Grammar(grammar)
    splits = {
        split: _kept([task, split, count, grammar], functools.partial(toy.documents, task, split, count))
        for split, count in COUNTS.items()
    }
    return datasets.DatasetDict(splits)


def questions(ask: str, grammar: int = 0, **_: Any) -> datasets.DatasetDict:
    """The questions of one utility task."""
    count = COUNTS["test"]
    asked = _kept(["questions", ask, count, grammar], lambda: Grammar(grammar).questions(ask, count))
    return datasets.DatasetDict({"test": asked})


def _kept(what: Sequence[str | int], generate: Callable[[], Sequence[Mapping[str, Any]]]) -> datasets.Dataset:
    """Read a split from the cache, or generate it and write it there atomically."""
    home = Path(os.environ.get("NFTBENCH_CACHE") or Path.home() / ".cache" / "nftbench")
    name = hashlib.sha256(json.dumps([*what, _version()]).encode()).hexdigest()
    path = home / "toy" / f"{name[:32]}.jsonl"
    if path.is_file():
        return datasets.Dataset.from_list([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    rows = generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    return datasets.Dataset.from_list(list(rows))


@functools.cache
def _version() -> str:
    """A hash of the grammar's source code, so that a changed grammar does not find old documents in the cache."""
    return hashlib.sha256(inspect.getsource(language).encode()).hexdigest()[:12]
