"""Releases: a defense protects, the referee examines what it released, and each part is kept where it belongs.

The release is public; its secret and its second checkpoint are for the owner, and for attacks that are told of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from nftbench.contract import Corpus, Defense, Mask, Model, Protected, Protection, Release, Secret, Series, Task, Update
from nftbench.data import corpus as corpora, loglikelihood as requests
from nftbench.data.lm_eval_tasks import window
from nftbench.errors import NftbenchError
from nftbench.models import networks as models, updates
from nftbench.planning import registry
from nftbench.planning.plan import Job
from nftbench.planning.specs import canonical
from nftbench.records.spec import Spec
from nftbench.running.owner import Owner, make_base
from nftbench.running.workspace import Workplace, derive, load_task, make_corpus
from nftbench.suites.schema import Budget, Pretraining
from nftbench.training.costs import gradient_error

ADAPTER = "adapter"
"""The folder of a release in which its update lies, if it has one."""


def make_release(place: Workplace, spec: Spec, seed: int, key: str) -> Path:
    """The folder of a release, protected if it is not there yet. Its secret lies elsewhere, for the owner only.

    Raises:
        Exception: whatever the defense raises, or NftbenchError for a release that is not one.
    """
    store, keeps_secret = place.store, registry.create("defenses", str(spec)).keeps_secret
    kinds = ("protections", *(("secrets",) if keeps_secret else ()))
    if any(store.artifact(kind, key) is None for kind in kinds):
        store.discard("releases", key)  # what belongs to it is missing or damaged: only all of it can be made again
    return store.make("releases", key, lambda folder: _protect(place, spec, seed, key, folder))


def open_release(place: Workplace, seed: int, folder: Path) -> Model:
    """A release as attackers open it: everything in it can be trained, and code that is its owner's own is put aside
    where the library's reads the same weights as well."""
    model = models.load(folder, place.device, attacker=True)
    if not models.has_own_code(model.network) or place.suite.pretraining.task is not None or model.tokenizer is None:
        return model
    text = _text(make_corpus(place, seed), len(model.tokenizer), place.device)
    return Model(models.by_the_library(model.network, place.suite.model["model_type"], text), model.tokenizer)


def make_reference(place: Workplace, job: Job) -> Model:
    """The undefended model that a row is set against."""
    reference = canonical("defenses", registry.create("defenses", str(job.defense)).reference_row())
    key = place.plan.releases[str(reference), job.seed]
    return open_release(place, job.seed, make_release(place, reference, job.seed, key))


def make_sibling(place: Workplace, job: Job) -> Model:
    """The second checkpoint of a release's run, kept when the release is made.

    Raises:
        NftbenchError: the defense trained no network of the release's shapes as far as that.
    """
    folder = place.store.artifact("siblings", job.release)
    if folder is None:  # a release in the cache from before siblings were kept
        place.store.discard("releases", job.release)
        make_release(place, job.defense, job.seed, job.release)
        folder = place.store.artifact("siblings", job.release)
    if folder is None:
        raise NftbenchError(f"{job.defense} leaves no second checkpoint of its run")
    return open_release(place, job.seed, folder)


def load_secret(place: Workplace, key: str) -> Secret | None:
    """The owner's secret of a release."""
    folder = place.store.artifact("secrets", key)
    if folder is None:
        return None
    return Secret({name: tensor.bool() for name, tensor in load_file(folder / "mask.safetensors").items()})


def load_protection(place: Workplace, key: str) -> Protection | None:
    """What the referee found about a release."""
    folder = place.store.artifact("protections", key)
    if folder is None:
        return None
    content = json.loads((folder / "protection.json").read_text())
    curves = [Series(**{**curve, "x": tuple(curve["x"]), "y": tuple(curve["y"])}) for curve in content.pop("series")]
    return Protection(**content, series=tuple(curves))


@dataclass(frozen=True)
class ReleaseInspection:
    """`Inspection` of one release."""

    _place: Workplace
    _job: Job
    _release: Release

    @property
    def release(self) -> Model:
        return self._release.model

    @functools.cached_property
    def base(self) -> Model:
        return make_reference(self._place, self._job)

    @functools.cached_property
    def initial(self) -> Model:
        return Owner(self._place, self._job.seed).build()

    @property
    def update(self) -> Update | None:
        return self._release.update

    @functools.cached_property
    def secret(self) -> Secret | None:
        return load_secret(self._place, self._job.release)

    @property
    def protection(self) -> Protection:
        found = load_protection(self._place, self._job.release)
        assert found is not None  # it is made with the release
        return found

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._place, self._job.seed)

    @property
    def budget(self) -> Budget:
        return self._place.suite.budget

    @property
    def pretraining(self) -> Pretraining:
        return self._place.suite.pretraining

    @property
    def seed(self) -> int:
        return derive(self._job.seed, "yardstick")

    @functools.cached_property
    def told(self) -> tuple[str, ...]:
        defense: Defense = registry.create("defenses", str(self._job.defense))
        return defense.told()

    def task(self, spec: str) -> Task:
        return load_task(self._place, Spec.parse(spec), self._job.seed, self.release)


def _protect(place: Workplace, spec: Spec, seed: int, key: str, folder: Path) -> None:
    """Let the defense protect; write secret and protection, then fill the release's folder."""
    defense: Defense = registry.create("defenses", str(spec))
    owner = Owner(place, seed, defense.told())
    model = owner.build() if defense.stage == "pretrain" else make_base(place, seed)
    started = time.monotonic()
    protected = defense.protect(model, owner)
    seconds = time.monotonic() - started
    if not isinstance(protected, Protected):
        raise NftbenchError(f"protect returned {type(protected).__name__}, not Protected")
    mask = protected.secret.mask if protected.secret is not None else None
    _check_release(protected.release, mask)
    models.save(protected.release, folder)
    if protected.update is not None:
        updates.save(protected.update, folder / ADAPTER)
    published = models.load(folder, place.device)
    _check_published(folder, published)
    opened = open_release(place, seed, folder)
    protection = _examine(place, seed, published, opened, mask, protected.series, seconds)
    # A killed attempt may have left its secret; only what belongs to these weights may stay.
    for kind in ("secrets", "siblings", "protections"):
        place.store.discard(kind, key)
    sibling = owner.sibling(protected.release)
    if sibling is not None:
        place.store.make("siblings", key, lambda draft: models.save(sibling, draft), mode=0o700)
    if mask is not None:
        held = {name: tensor.detach().to("cpu", torch.uint8).contiguous() for name, tensor in mask.items()}
        place.store.make("secrets", key, lambda draft: save_file(held, draft / "mask.safetensors"), mode=0o700)
    text = json.dumps(dataclasses.asdict(protection))
    place.store.make("protections", key, lambda draft: _write(draft / "protection.json", text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_published(folder: Path, model: Model) -> None:
    """Refuse tensors that are no weights: a mask left on a module as a buffer would be published with it."""
    known = model.network.state_dict().keys()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if name not in known:
                    raise NftbenchError(f"the release's files hold a tensor that its architecture lacks: {name}")


def _check_release(model: Model, mask: Mask | None) -> None:
    """Refuse what cannot be published: weights that are not finite, a mask that fits another network."""
    for name, weight in model.network.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise NftbenchError(f"the release's weights are not finite: {name}")
    if mask is None:
        return
    named = dict(model.network.named_parameters())
    for name, parameter in named.items():
        if name not in mask or mask[name].shape != parameter.shape:
            raise NftbenchError(f"the secret mask does not fit the release: {name}")


def _examine(
    place: Workplace,
    seed: int,
    model: Model,
    opened: Model,
    mask: Mask | None,
    series: Sequence[Series],
    seconds: float,
) -> Protection:
    """What the referee finds about a release and what an attacker makes of it (`opened`), beside what the defense says
    of itself (`series`)."""
    owner = Owner(place, seed)
    loss, tokenizer_changed = _probe(place, owner, model)
    before, after = owner.build().network.config.to_dict(), model.network.config.to_dict()
    ignored = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return Protection(
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        seconds=seconds,
        gradient_error=gradient_error(opened.network, loss, derive(seed, "probe")),
        config_changed={
            name: after.get(name) for name in sorted({*before, *after} - ignored) if before.get(name) != after.get(name)
        },
        tokenizer_changed=tokenizer_changed,
        own_code=models.has_own_code(opened.network),
        density={name: float(tensor.float().mean()) for name, tensor in mask.items()} if mask is not None else {},
        series=tuple(series),
    )


def _probe(place: Workplace, owner: Owner, model: Model) -> tuple[Callable[[nn.Module], torch.Tensor], bool]:
    """A loss to probe the release's gradients with, and whether its tokenizer is another than the corpus's.

    Raises:
        NftbenchError: the release's outputs do not have the shape that they should have, or it reads less at once than
            a block of its text.
    """
    told = place.suite.pretraining.task
    if told is not None:
        task = owner.task(told)
        batch = task.split("train").batch(range(min(64, len(task.split("train")))))
        return lambda network: task.loss(network, batch), False
    corpus = owner.corpus
    if model.tokenizer is None:
        raise NftbenchError("the release has no tokenizer")
    words = model.network.get_input_embeddings().num_embeddings
    if words < len(model.tokenizer):
        raise NftbenchError(f"the release embeds {words} words, its tokenizer has {len(model.tokenizer)}")
    tokens = _text(corpus, len(model.tokenizer), place.device)
    block, half = tokens.shape[1], tokens.shape[1] // 2
    if window(model) < block:
        raise NftbenchError(f"the release reads {window(model)} tokens at once, a block of its text has {block}")

    def loss(network: nn.Module) -> torch.Tensor:
        with models.seeded(0):  # the same dropout in every call
            logits = network(input_ids=tokens).logits[:, :-1]
            # As tasks are trained on, which ask for the last positions alone: a network may compute those another way.
            last = requests.logits_at_end(network, tokens[:, :-1], half)
        # Not the network's own loss: transformers computes it in float32, too coarse for differences.
        found, true = torch.cat([logits, last], 1), torch.cat([tokens[:, 1:], tokens[:, -half:]], 1)
        return nn.functional.cross_entropy(found.flatten(0, 1).double(), true.flatten())

    with torch.no_grad():
        logits = model.network(input_ids=tokens).logits
    if logits.shape[-1] < len(model.tokenizer) or logits.shape[:2] != tokens.shape:
        raise NftbenchError(f"the release gives logits of shape {tuple(logits.shape)} for {len(model.tokenizer)} words")
    return loss, _reads_otherwise(model.tokenizer, corpus)


def _text(corpus: Corpus, words: int, device: str) -> torch.Tensor:
    """Some running text [8, block]; a checkpoint brings a tokenizer of its own, with fewer words perhaps."""
    return corpus.heldout[:8].to(device) % words


def _reads_otherwise(tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> bool:
    """Whether a tokenizer has other words, other rules, or reads a word or the beginning of a text in another way."""
    usual = corpus.tokenizer
    if corpora.reading_rules(tokenizer) != corpora.reading_rules(usual):
        return True
    beginnings = [usual.decode(block[: 2 + index % len(block)]) for index, block in enumerate(corpus.heldout[:64])]
    texts = [*sorted(usual.get_vocab()), *beginnings]
    mine, theirs = (requests.Encoder(one, 0) for one in (tokenizer, usual))
    return any(
        mine.tokens(texts, special=special) != theirs.tokens(texts, special=special) for special in (True, False)
    )
