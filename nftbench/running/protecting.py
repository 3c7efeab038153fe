"""A defense protects a model in a process of its own: what it is given, and what it leaves in its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nftbench.contract import Corpus, Defense, Model, Protected, Series, Task
from nftbench.data.window import window
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models import networks, updates
from nftbench.planning import registry
from nftbench.planning.plan import given_path
from nftbench.records.spec import Spec
from nftbench.running import activity, failures, isolation, packing
from nftbench.running.owner import BaseOwner, Recipe, step_at
from nftbench.running.workspace import Workspace
from nftbench.training import engine

RELEASE, OPENED, ADAPTER, SIBLING = "release", "opened", "adapter", "sibling"
"""Folders in the child's folder. `opened` and `adapter` lie in the release and are published with it. `opened` holds
the release in an architecture of a library, if its own code can be replaced by one."""
MASK, REPORT, FAILED = "mask.safetensors", "report.json", "failed.json"


@dataclass(frozen=True)
class Order:
    """What a defense's process is given: all that an owner may see."""

    defense: str
    suite: Recipe
    device: Device
    base_seed: int
    seed: int
    """What the defense draws by."""
    corpus: Corpus | None
    tasks: Mapping[str, Task]
    """The tasks that the defense names in `told`, and that of pre-training, with their training splits."""
    bases: Mapping[int, Path]
    """Folders of the undefended model by steps of its run; a given base is at step 0."""
    trained: bool
    """Whether `protect` is given the trained base model."""
    precision: torch.dtype = torch.float32
    """The precision in which the release is published."""
    fingerprint: str | None = None
    """That of the files which the defense reads, at the time of planning; None where it reads none."""


@dataclass(frozen=True)
class OwnerReport:
    """What the process says about its work, beside the files of the release."""

    seconds: float
    steps: int
    tokens: int
    series: tuple[Series, ...]


@dataclass(frozen=True)
class OwnerApart(BaseOwner):
    """`OwnerContext` in the defense's own process. It leads to nothing that the owner may not see."""

    suite: Recipe
    device: Device
    base_seed: int
    _seed: int
    _corpus: Corpus | None
    _tasks: Mapping[str, Task]
    _bases: Mapping[int, Path]
    _meter: Meter
    kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise NftbenchError("the suite has no corpus: its models read no text")
        return self._corpus

    def task(self, spec: str) -> Task:
        if spec not in self._tasks:
            raise NftbenchError(f"the defense asks for the task {spec!r}, which it does not name in told()")
        return self._tasks[spec]

    def checkpoint(self, fraction: float) -> Model:
        if self.suite.is_given:
            if fraction != 1.0:
                raise NftbenchError("a given base has no earlier checkpoints")
            return networks.load(self._bases[0], str(self.device))
        steps = step_at(self.pretraining, fraction)
        if steps not in self._bases:  # a run like the base's own gives the same bits
            return self.pretrain(self.build(), each_step=lambda _, step: step == steps)
        self._meter.start = max(self._meter.start, steps)
        return networks.load(self._bases[steps], str(self.device))

    def given_folder(self) -> Path | None:
        return self._bases[0] if self.suite.is_given else None


@dataclass
class Meter:
    """Counts optimizer steps, and the tokens that a network embeds while it is trained."""

    steps: int = 0
    tokens: int = 0
    start: int = 0
    """Steps of the base's run that the owner took over with a checkpoint."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        embed = nn.functional.embedding

        def counted(tokens: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
            if torch.is_grad_enabled() and tokens.ndim == 2 and not _are_positions(tokens):
                self.tokens += tokens.numel()
            return embed(tokens, weight, *rest, **options)

        def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            # Muon comes with an AdamW for the other weights; a step of both is counted twice.
            self.steps += 1

        nn.functional.embedding = counted  # type: ignore[assignment]
        handle = register_optimizer_step_post_hook(stepped)
        try:
            yield
        finally:
            handle.remove()
            nn.functional.embedding = embed


def _are_positions(ids: Tensor) -> bool:
    """Whether these are the numbers of a text's positions, which some networks embed too."""
    return len(ids) == 1 and ids.shape[1] > 1 and bool((ids[0].diff() == 1).all())


def protect(order: Order, folder: Path, workspace: Workspace, limit: float) -> tuple[OwnerReport, float]:
    """Run the defense in a process of its own; returns its report, and the processor seconds that it took.

    Raises:
        FailedError: the defense failed.
        NftbenchError: its process ended without a result.
    """
    given = given_path(Spec.parse(order.defense))  # it may lie in the cache, or below --data
    hidden = [
        split for task in order.tasks.values() for split in packing.splits(task, ("validation", "selection", "test"))
    ]
    activity.tell("protects the model")
    seconds = isolation.run(
        perform,
        packing.pack(order, folder, hidden),
        folder,
        workspace.store,
        limit=limit,
        hidden=workspace.documents,
        readable=(*order.bases.values(), *([Path(given)] if given is not None else [])),
    )
    activity.tell("examines the release")
    failures.raise_written(folder / FAILED)
    return TypeAdapter(OwnerReport).validate_json((folder / REPORT).read_bytes()), seconds


def perform(content: bytes, folder: Path) -> None:
    """Protect, in the defense's own process."""
    order: Order = packing.unpack(content, folder)
    failures.attempt(lambda: _protect(order, folder), folder / FAILED)


def _protect(order: Order, folder: Path) -> None:
    engine.set_threads(order.device)
    defense: Defense = registry.create("defenses", order.defense)
    _check_files(order, defense)
    meter = Meter()
    owner = OwnerApart(
        order.suite, order.device, order.base_seed, order.seed, order.corpus, order.tasks, order.bases, meter
    )
    model = owner.checkpoint(1.0) if order.trained else owner.build()
    started = time.monotonic()
    with meter.running():
        protected = defense.protect(model, owner)
    seconds = time.monotonic() - started
    _check_files(order, defense)  # they may have been written to while they were read
    if not isinstance(protected, Protected):
        raise NftbenchError(f"protect returned {type(protected).__name__}, not Protected")
    if order.precision != torch.float32:
        protected.release.network.to(order.precision)
    networks.save(protected.release, folder / RELEASE)
    _save_opened(order, folder / RELEASE)
    if protected.update is not None:
        updates.save(protected.update, folder / RELEASE / ADAPTER)
    sibling = owner.sibling(protected.release)
    if sibling is not None:
        networks.save(sibling, folder / SIBLING)
    if protected.secret is not None:
        mask = {name: part.detach().to("cpu", torch.uint8).contiguous() for name, part in protected.secret.mask.items()}
        save_file(mask, folder / MASK)
    taken = order.suite.pretraining
    block = order.corpus.train.shape[1] if order.corpus is not None else 0
    report = OwnerReport(
        seconds,
        meter.steps + meter.start,
        meter.tokens + meter.start * taken.batch * block,
        tuple(protected.series),
    )
    (folder / REPORT).write_bytes(TypeAdapter(OwnerReport).dump_json(report))


def _check_files(order: Order, defense: Defense) -> None:
    """Refuse to make a release under the key of files that have been edited, such as those of a given release."""
    if order.fingerprint is not None and defense.fingerprint() != order.fingerprint:
        raise NftbenchError(f"{order.defense}: its files have changed since the run was planned; start the run again")


def _save_opened(order: Order, release: Path) -> None:
    """Write the release in a library's architecture, where it comes with code that one can replace.

    An attacker who holds the files need not run the owner's code.
    """
    if networks.is_known(release):
        return
    model = networks.load(release, str(order.device), attacker=True)
    if not networks.has_custom_code(model.network) or order.corpus is None or model.tokenizer is None:
        return
    text = text_of(order.corpus, len(model.tokenizer), str(order.device))
    opened = networks.in_known_architecture(model.network, _architecture(order), text)
    if opened is not model.network and window(Model(opened, model.tokenizer)) > 0:
        networks.save(Model(opened, model.tokenizer), release / OPENED)


def _architecture(order: Order) -> str:
    """The `model_type` of the base."""
    settings = networks.settings_of(order.bases[0]) if order.suite.is_given else order.suite.model
    return str(settings["model_type"])


def text_of(corpus: Corpus, words: int, device: str) -> Tensor:
    """Held-out tokens [8, block] below `words`: the tokenizer of a checkpoint may have fewer words than the corpus."""
    return corpus.heldout[:8].to(device) % words


def load_mask(folder: Path) -> dict[str, Tensor] | None:
    """The secret mask that the defense left in its folder; None if it left none."""
    path = folder / MASK
    return {name: part.bool() for name, part in load_file(path).items()} if path.exists() else None
