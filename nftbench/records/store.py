"""Records and releases on disk, by content hash; what is there is whole.

Under the results folder: `records/`, one JSON file a cell, and `manifest.json`, what the last run planned. Under the
cache: `corpora/`, `bases/`, `releases/` and, apart from them and for the owner only, `secrets/`. Every write is a
temporary file or folder, fsync, rename. Locks are `flock`s: a killed process leaves none behind.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from nftbench.errors import NftbenchError
from nftbench.records.record import Cell, Record

_COMPLETE = "complete.json"
SETTLED = ("ok", "nonfinite")
"""Statuses that a further run does not try again."""


def default_cache() -> Path:
    """Where bases, releases and generated data lie: $NFTBENCH_CACHE, or ~/.cache/nftbench."""
    return Path(os.environ.get("NFTBENCH_CACHE") or Path.home() / ".cache" / "nftbench")


@dataclass(frozen=True)
class Store:
    """The folders of one run."""

    results: Path
    cache: Path

    # ------------------------------------------------------------------------------------------------------- records

    def write(self, record: Record) -> Path:
        """Write one record, whole or not at all; a settled one takes the place of an unsettled one."""
        path = self.path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _json(record))
        return path

    def records(self) -> dict[str, Record]:
        """Every readable record by its key. One that cannot be read is set aside with a warning, and done again."""
        found: dict[str, Record] = {}
        for path in sorted((self.results / "records").glob("*.json")):
            try:
                record = _read(path)
            except ValidationError as error:
                first = error.errors()[0]
                warnings.warn(f"{path}: set aside: {'.'.join(map(str, first['loc']))} {first['msg']}", stacklevel=2)
                with contextlib.suppress(FileNotFoundError):  # another run has set it aside
                    path.rename(path.with_suffix(".corrupt"))
                continue
            except FileNotFoundError:
                continue
            found[record.key] = record
        return found

    def settled_among(self, cells: Sequence[Cell]) -> set[str]:
        """Of these cells, the keys that need not run again; reads their records alone."""
        found = set()
        for cell in cells:
            try:
                record = _read(self.path(cell))
            except (FileNotFoundError, ValidationError):
                continue
            if record.key == cell.key and record.status in SETTLED:
                found.add(cell.key)
        return found

    def forget(self, keys: Sequence[str]) -> None:
        """Delete the records of these cells (`--force`)."""
        for key, record in self.records().items():
            if key in keys:
                self.path(record).unlink(missing_ok=True)

    def path(self, cell: Record | Cell) -> Path:
        """The file of a cell's record: readable, and told apart by its key."""
        name = f"{cell.defense}-{cell.attack}-{cell.task}-{cell.seed}"
        readable = re.sub(r"[^A-Za-z0-9=.+-]+", "_", name).strip("_")[:120]
        return self.results / "records" / f"{readable}-{cell.key[:16]}.json"

    # ------------------------------------------------------------------------------------------------------ manifest

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """What was planned, so that a report needs nothing but the folder."""
        self.results.mkdir(parents=True, exist_ok=True)
        write_atomically(self.results / "manifest.json", json.dumps(content, indent=1).encode() + b"\n")

    def manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote.

        Raises:
            NftbenchError: the folder holds no results.
        """
        path = self.results / "manifest.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise NftbenchError(f"{self.results}: no results here (manifest.json is missing)") from None
        except json.JSONDecodeError as error:
            raise NftbenchError(f"{path}: not JSON: {error}") from None
        return content

    # ----------------------------------------------------------------------------------------------------- artifacts

    def artifact(self, kind: str, key: str) -> Path | None:
        """The folder of a base, release or corpus, if it is there and unharmed; a damaged one is set aside."""
        folder = self.cache / kind / key
        if not folder.is_dir():
            return None
        try:
            expected = json.loads((folder / _COMPLETE).read_text())
            intact = all(_sha256(folder / name) == digest for name, digest in expected.items())
        except (OSError, json.JSONDecodeError):
            intact = False
        if intact:
            return folder
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.corrupt-", dir=folder.parent))
        warnings.warn(f"{folder}: damaged; set aside as {aside.name} and made again", stacklevel=2)
        folder.rename(aside / key)
        return None

    def make(self, kind: str, key: str, build: Callable[[Path], None], mode: int = 0o755) -> Path:
        """The artifact's folder, made by `build(folder)` if it is not there; two processes make it once."""
        with self.lock(kind, key):
            found = self.artifact(kind, key)
            if found is not None:
                return found
            parent = self.cache / kind
            parent.mkdir(parents=True, exist_ok=True, mode=mode)
            draft = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
            try:
                build(draft)
                files = sorted(path for path in draft.rglob("*") if path.is_file())
                digests = {str(path.relative_to(draft)): _sha256(path) for path in files}
                (draft / _COMPLETE).write_text(json.dumps(digests, indent=1))
                for path in [*files, draft / _COMPLETE]:
                    path.chmod(mode & 0o666)
                    _fsync(path)
                draft.chmod(mode)
                draft.rename(parent / key)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            return parent / key

    def discard(self, kind: str, key: str) -> None:
        """Delete an artifact, if it is there."""
        with self.lock(kind, key):
            shutil.rmtree(self.cache / kind / key, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Wait for, and hold, the artifact's lock."""
        with self._lock(self.cache, kind, key):
            yield

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold a job of this results folder, or learn at once that another process holds it."""
        lock = self._lock(self.results, "jobs", key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @staticmethod
    def _lock(root: Path, kind: str, key: str) -> FileLock:
        folder = root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{kind}-{key}.lock")


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary file, fsync, rename: a reader sees the old file or the new one, whole."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _json(record: Record) -> bytes:
    """The record as its file has it; a set has no order of its own, but equal records are to be equal files."""
    content = _adapter().dump_python(record, mode="json")
    claim = content["row"]["claim"]
    if claim is not None:
        claim["knowledge"].sort()
    return to_json(content, indent=1, inf_nan_mode="null") + b"\n"


@functools.cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def _read(path: Path) -> Record:
    status = path.stat()
    return _parsed(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8192)
def _parsed(path: Path, inode: int, changed: int, size: int) -> Record:
    """The record in this version of a file: resuming asks for each twice."""
    return _adapter().validate_json(path.read_bytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
