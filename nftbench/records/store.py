"""The folders of a run on disk: its results, and the cache of corpora and models.

The results folder holds `manifest.json`, the plan of the last run; `salt`, on which the grammars of the toy language
depend; `records/`, one JSON file for each cell; and `records.jsonl.xz`, the pack, into which `nftbench pack` moves the
single files. The cache holds `corpora/`, `bases/`,
`releases/` and, readable for the owner only, `secrets/`, each by key. Equal large files of bases and releases are hard
links to one file in `contents/`, so a release that changes nothing takes no space.

A file or folder is first written under a temporary name and then renamed, so that whatever is there is complete. Locks
are leases, which end with their process, also where the folders are shared by several machines.
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
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from nftbench.errors import NftbenchError
from nftbench.records import disk_budget, leases, manifest as manifests, pack as packs
from nftbench.records.identity import file_hash
from nftbench.records.manifest import Manifest
from nftbench.records.pack import JsonObject
from nftbench.records.record import Cell, Record

_COMPLETE = "complete.json"
CONTENTS = "contents"
"""The folder of the cache with the files that artifacts share, by hash."""
SHARED, LARGE = ("bases", "releases"), 1_000_000
"""Kinds of artifacts whose files of at least so many bytes are shared. All of them are public and have one mode."""
PACK = "records.jsonl.xz"
"""The name of the pack in a folder of results."""
WORKERS = ".workers"
"""The folder of what is sent to workers on other machines."""
SETTLED = ("ok", "nonfinite")
"""Statuses of cells that are not run again."""


def default_cache() -> Path:
    """The folder of corpora, base models and releases: $NFTBENCH_CACHE, or else ~/.cache/nftbench.

    Raises:
        NftbenchError: neither is there, as for a user of a container who has no home.
    """
    try:
        return Path(os.environ.get("NFTBENCH_CACHE") or Path.home() / ".cache" / "nftbench")
    except RuntimeError:
        raise NftbenchError("this user has no home folder to cache models in; set NFTBENCH_CACHE to a folder") from None


def settled(cells: Collection[Cell], records: Mapping[str, Record]) -> set[str]:
    """Of these cells, the keys whose records need not be made again."""
    return {cell.key for cell in cells if cell.key in records and records[cell.key].status in SETTLED}


def planned(records: Mapping[str, Record], manifest: Manifest) -> dict[str, Record]:
    """Those of the records that a manifest names, by key."""
    keys = manifest.keys
    return {key: record for key, record in records.items() if key in keys}


@dataclass(frozen=True)
class Packed:
    """The outcome of packing a results folder."""

    records: int
    """The number of records in the pack now."""
    files: int
    """The number of single files that were moved into it."""
    before: int
    """Size of these files and of the old pack, in bytes."""
    after: int
    """Size of the new pack, in bytes."""


@dataclass(frozen=True)
class Store:
    """The results folder and the cache of one run."""

    results: Path
    cache: Path
    expiry: float = leases.EXPIRY
    """Seconds after which a process that gives no sign of life loses its locks."""

    @property
    def private(self) -> tuple[Path, ...]:
        """What no plugin may read of the results folder: salt, locks, plans, and the scores of cells that have run.

        Of the folders beside it salts and plans are private too. A folder that was copied, as for a proof that goes on
        in it, or that others were merged into, has their salt.
        """
        top, names = self.results.resolve(), ("salt", leases.FOLDER, WORKERS, "records", self._pack.name)
        pages = {path.stem for kind in ("md", "html") for path in top.glob(f"*.{kind}")}
        return (
            *(self.results / name for name in names),
            *(path for path in top.glob("*") if path.stem in pages or path.suffix in (".png", ".svg")),
            *top.glob("leaderboard*"),
            *top.glob("defenses/*.md"),
            *(path for name in ("salt", WORKERS) for path in top.parent.glob(f"*/{name}")),
        )

    # ------------------------------------------------------------------------------------------------------- records

    def write(self, record: Record) -> Path:
        """Write one record to its single file, and return the file's path. An older file of the cell is replaced."""
        path = self.path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, as_json(record))
        return path

    def records(self) -> dict[str, Record]:
        """All records by key, from single files and from the pack, in the order of file names.

        A single file that cannot be read is renamed with a warning, so that its cell runs again.

        Raises:
            NftbenchError: the pack is damaged.
        """
        # Single files first: a record that another process packs meanwhile is then read twice, but never missed.
        single = self._single_records()
        if not (packed := self._packed_records()):
            return single
        merged = _merged(packed, single, lambda record: record.status)
        return {record.key: record for record in sorted(merged.values(), key=_file_name)}

    def inspect(self) -> tuple[dict[str, Record], dict[Path, str]]:
        """All records as `records` gives them, and the single files that cannot be read, each with the reason.

        Nothing in the folder is changed.

        Raises:
            NftbenchError: the pack is damaged.
        """
        files = dict(self._files())
        single = {found.key: found for found in files.values() if isinstance(found, Record)}
        merged = _merged(self._packed_records(), single, lambda record: record.status)
        return merged, {path: found for path, found in files.items() if isinstance(found, str)}

    def planned(self, manifest: Manifest) -> dict[str, Record]:
        """The records that a manifest names, by key. The folder may hold others, of earlier settings."""
        return planned(self.records(), manifest)

    def contents(self) -> str:
        """A short text on how many records the folder holds. The pack is named but not opened, which saves time."""
        return f"{len(self._names())} records" + (f" and {self._pack.name}" if self._pack.exists() else "")

    def settled_among(self, cells: Sequence[Cell]) -> set[str]:
        """The keys of those cells that need not run again, by their single files. The pack is not read."""
        settled = set()
        for cell in cells:
            try:
                record = _read(self.path(cell))
            except (FileNotFoundError, ValidationError):
                continue
            if record.key == cell.key and record.status in SETTLED:
                settled.add(cell.key)
        return settled

    def read(self, cells: Sequence[Cell]) -> list[Record]:
        """The records of those cells that have a single file."""
        return [_read(path) for path in map(self.path, cells) if path.exists()]

    def forget(self, keys: Collection[str]) -> None:
        """Delete the records with these keys, from single files and from the pack.

        Raises:
            NftbenchError: the pack is damaged, or it holds one of the records and another process works in the folder.
        """
        doomed = set(keys)
        if doomed & self._packed_records().keys():
            with self.alone():
                self._write_pack([one for one in self.packed() if one["key"] not in doomed])
        for path, record in self._single_files():
            if record.key in doomed:
                path.unlink(missing_ok=True)

    def path(self, cell: Record | Cell) -> Path:
        """The single file of a cell's record. Its name shows the cell, and ends in the beginning of the key."""
        return self.results / "records" / _file_name(cell)

    def _single_records(self) -> dict[str, Record]:
        return {record.key: record for _, record in self._single_files()}

    def _single_files(self) -> Iterator[tuple[Path, Record]]:
        """Single files and their records, in the order of file names. Unreadable files are renamed with a warning."""
        for path, found in self._files():
            if isinstance(found, Record):
                yield path, found
                continue
            warnings.warn(f"{path}: set aside: {found}", stacklevel=2)
            with contextlib.suppress(OSError):  # another run has renamed it, or the folder is only to be read
                path.rename(path.with_suffix(".corrupt"))

    def _files(self) -> Iterator[tuple[Path, Record | str]]:
        """Single files in the order of their names, each with its record, or with the reason why it is none."""
        for path in map((self.results / "records").joinpath, self._names()):
            try:
                yield path, _read(path)
            except ValidationError as error:
                first = error.errors()[0]
                yield path, f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
            except FileNotFoundError:
                continue

    def _names(self) -> list[str]:
        """The names of the single files in their order. To sort as many paths takes several times as long."""
        try:
            with os.scandir(self.results / "records") as entries:
                return sorted(entry.name for entry in entries if entry.name.endswith(".json"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # ------------------------------------------------------------------------------------------------------ the pack

    def pack(self) -> Packed:
        """Move the single files into the pack, and name the folder's salt in its manifest.

        If the process is killed, nothing is lost: single files are deleted only after the pack has been written and
        read back. A record that is in both places is then read once.

        Raises:
            NftbenchError: another process works in the folder, or the old pack is damaged.
        """
        with self.alone():
            for draft in self.results.glob(f".{self._pack.name}.*"):  # left by a killed process
                draft.unlink()
            contents = {path: path.read_bytes() for path, _ in self._single_files()}
            size = _size(self._pack)
            single = {record["key"]: record for record in map(json.loads, contents.values())}
            packed = {record["key"]: record for record in self.packed()}
            merged = _merged(packed, single, lambda record: record["status"])
            if contents:
                self._write_pack(list(merged.values()))
            for path, content in contents.items():
                if path.read_bytes() == content:
                    path.unlink()
            with contextlib.suppress(OSError):  # the folder is missing, or not empty
                (self.results / "records").rmdir()
            manifest = self.earlier_manifest()
            if manifest is not None and self.salt() is not None:
                self.write_manifest(replace(manifest, salt=self.salt()))
            return Packed(len(merged), len(contents), size + sum(map(len, contents.values())), _size(self._pack))

    @property
    def _pack(self) -> Path:
        return self.results / PACK

    def packed(self) -> list[JsonObject]:
        """The pack's records as JSON objects; empty without a pack."""
        if not self._pack.exists():
            return []
        return list(map(json.loads, packs.decode(self._pack.read_bytes(), str(self._pack))))

    def _packed_records(self) -> Mapping[str, Record]:
        try:
            status = self._pack.stat()
        except FileNotFoundError:
            return {}
        return _unpacked(self._pack, status.st_ino, status.st_mtime_ns, status.st_size)

    def _write_pack(self, records: Sequence[JsonObject]) -> None:
        if not records:
            self._pack.unlink(missing_ok=True)
            return
        content = packs.encode(sorted(records, key=lambda one: [one[name] for name in _NAMING]))
        write_atomically(self._pack, content)
        _fsync(self.results)  # the pack's name must reach the disk before single files are deleted
        if self._pack.read_bytes() != content:
            raise NftbenchError(f"{self._pack}: differs on disk from what was written; the single files are kept")

    # ------------------------------------------------------------------------------------------------------ manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the plan to `manifest.json`. With it, a report needs nothing outside the folder."""
        self.results.mkdir(parents=True, exist_ok=True)
        write_atomically(self.results / "manifest.json", manifests.dump(manifest).encode())

    def manifest(self) -> Manifest:
        """The plan in `manifest.json`.

        Raises:
            NftbenchError: the folder holds no results, or its manifest is damaged.
        """
        return manifests.read(self.results / "manifest.json")

    def earlier_manifest(self) -> Manifest | None:
        """The plan of the last run in this folder; None if there was none yet.

        Raises:
            NftbenchError: the manifest is damaged, or another version of nftbench wrote it.
        """
        return self.manifest() if (self.results / "manifest.json").exists() else None

    # ---------------------------------------------------------------------------------------------------------- salt

    def salt(self) -> str | None:
        """The folder's salt; None if it has none yet.

        Raises:
            NftbenchError: its file holds no word. Anybody would know an empty salt.
        """
        path = self.results / "salt"
        try:
            found = path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        if found.split() != [found] or "\ufffd" in found or not found.isprintable():
            raise NftbenchError(
                f"{path}: is empty or damaged; restore it, or delete it to draw another salt and run all again"
            )
        return found

    def keep_salt(self, text: str) -> str:
        """The folder's salt. If it has none yet, it is `text` from now on: of several processes, the first one wins."""
        with self._held(self.results, "salt"):
            found = self.salt()
            if found is None:
                write_atomically(self.results / "salt", f"{text}\n".encode(), mode=0o600)
        return found or text

    # ----------------------------------------------------------------------------------------------------- artifacts

    def artifact(self, kind: str, key: str) -> Path | None:
        """The folder of a corpus, base model or release; None if it is missing or damaged. A damaged one is renamed."""
        if kind in disk_budget.KINDS:
            disk_budget.use(self.cache, kind, key)
        folder = self.cache / kind / key
        if not folder.is_dir():
            return None
        try:
            expected = json.loads((folder / _COMPLETE).read_text())
            intact = all(file_hash(folder / name) == digest for name, digest in expected.items())
        except (OSError, json.JSONDecodeError):
            intact = False
        if intact:
            with contextlib.suppress(OSError):  # the cache may be read-only
                os.utime(folder / _COMPLETE)  # the time of its last use
            return folder
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.corrupt-", dir=folder.parent))
        try:
            folder.rename(aside / key)
        except FileNotFoundError:  # another process was faster
            aside.rmdir()
            return None
        warnings.warn(f"{folder}: damaged; set aside as {aside.name} and made again", stacklevel=2)
        return None

    def make(self, kind: str, key: str, build: Callable[[Path], None], mode: int = 0o755) -> Path:
        """The artifact's folder. If it is missing, `build(folder)` fills it, in one process at a time.

        A process that was stopped for so long that another has taken its lock leaves the artifact to the other one.
        """
        while True:
            with self._held(self.cache, f"{kind}-{key}") as lease:
                found = self.artifact(kind, key)
                if found is not None:
                    return found
                try:
                    return self._make(kind, key, build, mode, lease)
                except Exception:
                    # Whatever went wrong, another process makes the artifact now, or has made it.
                    if lease.is_held() and not (self.cache / kind / key).exists():
                        raise

    def _make(self, kind: str, key: str, build: Callable[[Path], None], mode: int, lease: leases.Lease) -> Path:
        parent = self.cache / kind
        parent.mkdir(parents=True, exist_ok=True, mode=mode)
        for left in parent.glob(f".{key}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
        try:
            build(draft)
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            digests = {str(path.relative_to(draft)): _sha256(path) for path in files}
            for path in files if kind in SHARED else ():
                if path.stat().st_size >= LARGE:
                    self._share(path, digests[str(path.relative_to(draft))])
            (draft / _COMPLETE).write_text(json.dumps(digests, indent=1))
            for path in [*files, draft / _COMPLETE]:
                path.chmod(mode & 0o666)
                _fsync(path)
            draft.chmod(mode)
            lease.confirm()
            draft.rename(parent / key)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if kind in disk_budget.KINDS:
            disk_budget.make_room(self.cache, self.cache / CONTENTS, _COMPLETE)
        return parent / key

    def discard(self, kind: str, key: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Delete an artifact if it exists.

        Args:
            unless: keeps the artifact. It is asked under the artifact's lock: another process may be making it.
        """
        with self.lock(kind, key):
            if not unless():
                shutil.rmtree(self.cache / kind / key, ignore_errors=True)
                disk_budget.delete_unshared(self.cache / CONTENTS)

    def _share(self, path: Path, digest: str) -> None:
        """Make a file and all others of this content hard links to one, where the file system has hard links."""
        kept = self.cache / CONTENTS / digest
        kept.parent.mkdir(parents=True, exist_ok=True)
        with self._held(self.cache, f"{CONTENTS}-{digest}"), contextlib.suppress(OSError):
            if kept.exists() and _sha256(kept) != digest:  # damaged, as every link to it is
                kept.unlink()
            if not kept.exists():
                os.link(path, kept)
                return
            link = path.with_name(f".{path.name}.link")
            os.link(kept, link)
            link.replace(path)

    # ----------------------------------------------------------------------------------------------------------- locks

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Wait for the artifact's lock, and hold it."""
        with self._held(self.cache, f"{kind}-{key}"):
            yield

    def is_locked(self, kind: str, key: str) -> bool:
        """Whether a process holds the artifact's lock, as far as this one knows."""
        return leases.holder(leases.file(self.cache, f"{kind}-{key}"), self.expiry) is not None

    def confirm(self, kind: str, key: str) -> None:
        """Make sure that this process still holds the artifact's lock.

        Raises:
            LostError: it was stopped for so long that another process has taken the lock.
        """
        leases.confirm(leases.file(self.cache, f"{kind}-{key}"))

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Try to lock a job of this results folder: True if it is locked now, False if another process holds it."""
        lease = self._take_beside_others(f"jobs-{key}")
        try:
            yield lease is not None
        finally:
            if lease is not None:
                lease.end()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hold the results folder together with other processes that write records. Wait while it is being packed."""
        lease = self._take_beside_others(f"run-{uuid.uuid4()}")
        assert lease is not None  # nobody else has this name
        for name in ("run", "worker"):
            leases.tidy(self._alone.parent.glob(f"{name}-*.lease"))
        try:
            yield
        finally:
            lease.end()

    def give_signs_of_life(self, name: str) -> None:
        """Hold a lease of this name in the results folder, from now until this process ends."""
        with contextlib.suppress(OSError):  # a full disk must not end a worker
            leases.take(leases.file(self.results, name), self.expiry)

    def silent_workers(self, name: str) -> list[int]:
        """The numbers of the processes of this machine that hang: they hold leases whose names begin so, and live, but
        have given no sign of life for too long. A process learns that by asking again and again."""
        paths = self._alone.parent.glob(f"{name}*.lease")
        return [number for path in paths if (number := leases.hanging(path, self.expiry)) is not None]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the results folder as its only process.

        Raises:
            NftbenchError: another process works in it.
        """
        lease = leases.take(self._alone, self.expiry)
        if lease is None:
            raise NftbenchError(f"{self.results}: another nftbench process works here; wait for its end")
        try:
            others = [path for path in self._alone.parent.glob("*.lease") if path != self._alone]
            other = leases.first_alive(others, self.expiry)
            if other is not None:
                raise NftbenchError(f"{self.results}: another nftbench process works here ({other}); wait for its end")
            yield
        finally:
            lease.end()

    def _take_beside_others(self, name: str) -> leases.Lease | None:
        """A lease in the results folder, which is waited for only while one process holds the folder alone."""
        while True:
            lease = leases.take(leases.file(self.results, name), self.expiry)
            if lease is None or leases.holder(self._alone, self.expiry) is None:
                return lease
            lease.end()  # whoever wants the folder alone has asked first, or gives up because of this lease
            with self._held(self.results, "alone"):
                pass

    @property
    def _alone(self) -> Path:
        return leases.file(self.results, "alone")

    @contextlib.contextmanager
    def _held(self, root: Path, name: str) -> Iterator[leases.Lease]:
        with leases.held(leases.file(root, name), self.expiry) as lease:
            yield lease


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that readers see either the whole old file or the whole new one."""
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # the draft's name would say nothing to a user
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(mode)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def as_json(record: Record) -> bytes:
    """The content of a record's file. Sets are sorted, so that equal records give equal files."""
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


@functools.lru_cache(maxsize=65536)
def _parsed(path: Path, inode: int, changed: int, size: int) -> Record:
    """The record in a file. It is cached as long as the file is unchanged, because a run reads each file twice."""
    return _adapter().validate_json(path.read_bytes())


@functools.lru_cache(maxsize=4)
def _unpacked(path: Path, inode: int, changed: int, size: int) -> Mapping[str, Record]:
    """The records in a pack, by key. They are cached as long as the file is unchanged.

    Raises:
        NftbenchError: the pack is damaged.
    """
    texts, validate = packs.decode(path.read_bytes(), str(path)), _adapter().validate_json
    try:
        return {record.key: record for record in map(validate, texts)}
    except ValidationError as error:
        raise NftbenchError(f"{path}: contains an invalid record: {' '.join(str(error).split())}") from None


_Stored = TypeVar("_Stored", Record, JsonObject)


def _merged(
    packed: Mapping[str, _Stored], single: Mapping[str, _Stored], status: Callable[[_Stored], str]
) -> dict[str, _Stored]:
    """One record for each key. A settled record is preferred; between equals, that of the single file."""
    preferred = {
        key: record
        for key, record in single.items()
        if key not in packed or status(record) in SETTLED or status(packed[key]) not in SETTLED
    }
    return {**packed, **preferred}


_NAMING = ("defense", "attack", "task", "seed", "key")
"""The fields of a cell that its single file's name is made of."""


def _file_name(cell: Record | Cell) -> str:
    name = f"{cell.defense}-{cell.attack}-{cell.task}-{cell.seed}"
    readable = re.sub(r"[^A-Za-z0-9=.+-]+", "_", name).strip("_")[:120]
    return f"{readable}-{cell.key[:16]}.json"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
