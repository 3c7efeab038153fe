"""Releases: a defense protects a model, the referee examines the result, and each part is stored in its own folder.

The release is public. Its secret and the second checkpoint of its run are for the owner, and for attacks whose
knowledge names them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from nftbench.contract import (
    Corpus,
    Mask,
    Model,
    OwnerLedger,
    Protection,
    Release,
    Secret,
    Spent,
    Task,
    Update,
)
from nftbench.data import chat, loglikelihood
from nftbench.data.corpus import tokenization_rules
from nftbench.data.window import window
from nftbench.errors import NftbenchError
from nftbench.methods import symmetries
from nftbench.models import networks
from nftbench.planning import code_origin, registry
from nftbench.planning.plan import Job
from nftbench.records.spec import Spec
from nftbench.running import activity, failures, given_base, hub, isolation, plain_text, protecting
from nftbench.running.owner import Owner, Recipe, base_folder, base_seconds, kept_bases
from nftbench.running.plain_text import PlainTexts
from nftbench.running.protecting import ADAPTER, OPENED, text_of
from nftbench.running.workspace import Workspace, load_task, make_corpus
from nftbench.suites.schema import Budget, Pretraining, Suite
from nftbench.training import large_gradients
from nftbench.training.costs import gradient_error

FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", f"{ADAPTER}/*"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*"),
    *(
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "*.jinja",
        "additional_chat_templates/*",
    ),
)
"""What a release may consist of, as patterns of paths in its folder."""
MOST_SETTINGS = 10_000
"""Most bytes of a configuration file. Those of models on the hub have about 1,000, with lists for each layer 3,000; the
secret mask of the `small` model would take 11,000."""
MODES = 1e-3
"""Relative tolerance for calling the loss in training mode and in evaluation the same."""
AHEAD = 0.1
"""Most bits by which later words may move a release's predictions, beyond those of its reference."""
PROBED = 8
"""Prompts of each ranked task on which the gradients are checked."""
PATIENCE = 5.0
"""How many times the processor seconds of the undefended run a defense may take. Honest ones look for a mask, match a
network's outputs or take second derivatives, and counting steps and tokens catches longer training before this does."""
BASE = "base.json"
"""The file with hashes of weights, in the folder of a release's protection. `base_sha256` is of those that the release
is compared with, `start_sha256` of those that its defense was given; None where they are unknown or untrained."""


def make_release(workspace: Workspace, spec: Spec, seed: int, key: str) -> Path:
    """The folder of a release; the defense makes it if the cache lacks it. The secret is stored elsewhere.

    Raises:
        Exception: whatever the defense raises, or NftbenchError for a release that is not one, and for a defense that
            has been edited since the run was planned.
    """
    store, facts = workspace.store, workspace.plan.defenses[spec]
    kinds = ("protections", *(("secrets",) if facts.keeps_secret else ()))

    def has_all_parts() -> bool:
        return all(store.artifact(kind, key) is not None for kind in kinds)

    if store.is_locked("releases", key):
        activity.tell(activity.WAITS)
    if not has_all_parts():  # secret or protection is missing or damaged: all parts are made together
        store.discard("releases", key, unless=has_all_parts)
    found = store.artifact("releases", key)
    if found is not None:
        return found
    _check_sources(workspace, spec)
    base = _reference_sha256(workspace, spec, seed)
    return store.make("releases", key, lambda folder: _protect(workspace, spec, seed, key, folder, base))


def _check_sources(workspace: Workspace, spec: Spec) -> None:
    """Refuse to make a release under a key of former code: of the defense, or of a task that its owner uses."""
    told = (*workspace.plan.defenses[spec].told, workspace.suite.pretraining.task)
    tasks = [Spec.parse(task).name for task in told if task is not None]
    code_origin.check(workspace.plan, [("defenses", spec.name), *(("tasks", name) for name in tasks)])


def _reference_sha256(workspace: Workspace, spec: Spec, seed: int) -> str | None:
    """Hash of the tensors that the reference row releases; its release is made if it is not there yet.

    If the base model has been made anew since the reference was, it is the hash of the base model: the row starts from
    other weights than its reference. None where the row is its own reference, and where the reference cannot be made:
    its own cells say why.
    """
    reference, key = workspace.reference(spec, seed)
    if reference == spec or key is None:
        return None
    try:
        folder = make_release(workspace, reference, seed, key)
        start = _load_hash(workspace, key, "start_sha256")
        now = _start_sha256(workspace, reference, seed)
        return networks.tensors_sha256(folder) if start in (None, now) else now
    except (Exception, SystemExit):  # a plugin may raise anything
        return None


def _start_sha256(workspace: Workspace, spec: Spec, seed: int) -> str | None:
    """Hash of the base model that a defense changes; None for a defense that pre-trains an untrained model."""
    if workspace.plan.rows[spec].stage == "pretrain":
        return None
    return networks.tensors_sha256(base_folder(workspace, seed))


def open_release(workspace: Workspace, folder: Path) -> Model:
    """A release as attackers open it, in the suite's precision: every weight can be trained.

    Code of the owner's own is replaced by an architecture of transformers or nftbench, where one reads text with the
    same weights as well.
    """
    opened = folder / OPENED
    place = opened if opened.is_dir() else folder
    precision = given_base.precision(workspace.suite.given)
    return networks.load(place, str(workspace.device), attacker=True, dtype=precision)


def open_to_examine(workspace: Workspace, folder: Path) -> Model:
    """The weights of `open_release`, to compute with in float32.

    A release's files may hold more digits than the suite's precision has, and compute something else with them.
    """
    found = open_release(workspace, folder)
    found.network.float()
    return found


def needs_own_code(folder: Path) -> bool:
    """Whether a release can only be loaded with its owner's code."""
    return not any(networks.is_known(path) for path in (folder, folder / OPENED))


def aside(workspace: Workspace, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of the referee that runs an owner's code, in a process that ends with it.

    Raises:
        NftbenchError: nobody has said that this code is trusted, or what the function raised, as text.
    """
    if not workspace.trust_code:
        raise NftbenchError(
            "only its owner's code can open this release, and that code would run with your rights; read it, then add "
            "--trust-code"
        )
    isolation.aside(function, workspace, *arguments)


def make_reference(workspace: Workspace, job: Job) -> Model:
    """The undefended model that a row is compared with."""
    reference, key = workspace.reference(job.defense, job.seed)
    assert key is not None  # a plan has the reference of each of its rows
    return open_release(workspace, make_release(workspace, reference, job.seed, key))


def make_sibling(workspace: Workspace, job: Job) -> Model:
    """The second checkpoint of the owner's run, stored when the release was made.

    Raises:
        NftbenchError: the run kept no checkpoint, or its tensors have other shapes than the release's.
    """
    folder = workspace.store.artifact("siblings", job.release)
    if folder is None:  # it is damaged, or older than the storing of second checkpoints
        workspace.store.discard("releases", job.release)
        make_release(workspace, job.defense, job.seed, job.release)
        folder = workspace.store.artifact("siblings", job.release)
    assert folder is not None  # it is made with the release
    if not (folder / "config.json").is_file():
        raise NftbenchError(f"{job.defense} leaves no second checkpoint of its run")
    return open_release(workspace, folder)


def load_secret(workspace: Workspace, key: str) -> Secret | None:
    """The owner's secret of a release."""
    folder = workspace.store.artifact("secrets", key)
    if folder is None:
        return None
    return Secret({name: tensor.bool() for name, tensor in load_file(folder / "mask.safetensors").items()})


def load_protection(workspace: Workspace, key: str) -> Protection | None:
    """What the referee found about a release."""
    folder = workspace.store.artifact("protections", key)
    if folder is None:
        return None
    return TypeAdapter(Protection).validate_json((folder / "protection.json").read_bytes())


def load_base_sha256(workspace: Workspace, key: str) -> str | None:
    """Hash of the base weights that belong to a release; None where it is not known."""
    return _load_hash(workspace, key, "base_sha256")


def _load_hash(workspace: Workspace, key: str, name: Literal["base_sha256", "start_sha256"]) -> str | None:
    folder = workspace.store.artifact("protections", key)
    if folder is None or not (folder / BASE).is_file():  # kept since base weights are compared
        return None
    found: str | None = json.loads((folder / BASE).read_text()).get(name)
    return found


@dataclass(frozen=True)
class ReleaseInspection:
    """`Inspection` of one release."""

    _workspace: Workspace
    _job: Job
    _release: Release

    @property
    def release(self) -> Model:
        return self._release.model

    @functools.cached_property
    def base(self) -> Model:
        return make_reference(self._workspace, self._job)

    @functools.cached_property
    def initial(self) -> Model:
        return Owner(self._workspace, self._job.seed).build()

    @property
    def update(self) -> Update | None:
        return self._release.update

    @functools.cached_property
    def secret(self) -> Secret | None:
        return load_secret(self._workspace, self._job.release)

    @property
    def protection(self) -> Protection:
        found = load_protection(self._workspace, self._job.release)
        assert found is not None  # it is made with the release
        return found

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._workspace, self._job.seed)

    @property
    def budget(self) -> Budget:
        return self._workspace.suite.budget

    @property
    def pretraining(self) -> Pretraining:
        return self._workspace.suite.pretraining

    @property
    def seed(self) -> int:
        return self._workspace.seed_of("yardstick", self._job.seed)

    @functools.cached_property
    def told(self) -> tuple[str, ...]:
        return self._workspace.plan.defenses[self._job.defense].told

    def task(self, spec: str) -> Task:
        return load_task(self._workspace, Spec.parse(spec), self._job.seed, self.release)


def _protect(workspace: Workspace, spec: Spec, seed: int, key: str, folder: Path, base_sha256: str | None) -> None:
    """Let the defense protect; write secret, protection and base hash, then fill the release's folder."""
    with isolation.folder(workspace.store) as theirs:
        limit = workspace.suite.pretraining.timeout
        try:
            report, seconds = protecting.protect(_order(workspace, spec, seed), theirs, workspace, limit)
        except isolation.TooLongError as error:
            raise failures.FailedError("timeout", f"the defense was {error}") from error
        workspace.store.confirm("releases", key)  # the secret and the weights must come from one process
        shutil.copytree(theirs / protecting.RELEASE, folder, dirs_exist_ok=True)
        if needs_own_code(folder):
            aside(workspace, _publish, spec, seed, key, folder, theirs, report, seconds, base_sha256)
        else:
            _publish(workspace, spec, seed, key, folder, theirs, report, seconds, base_sha256)


def _order(workspace: Workspace, spec: Spec, seed: int) -> protecting.Order:
    """What the defense's process is given."""
    facts, suite = workspace.plan.defenses[spec], workspace.suite
    trained = facts.stage == "posttrain" or suite.given is not None
    if trained:
        base_folder(workspace, seed)
    owner, learned = Owner(workspace, seed, facts.told), suite.pretraining.task
    return protecting.Order(
        defense=str(_with_files(workspace, spec)),
        suite=Recipe.of(suite),
        device=workspace.device,
        base_seed=seed,
        seed=workspace.seed_of("defense", seed),
        corpus=make_corpus(workspace, seed) if suite.corpus.source != "none" else None,
        tasks={name: owner.task(name) for name in (*facts.told, *([learned] if learned is not None else []))},
        bases=kept_bases(workspace, seed),
        trained=trained,
        precision=given_base.precision(suite.given),
        fingerprint=workspace.plan.fingerprints.get(spec),
    )


def _with_files(workspace: Workspace, spec: Spec) -> Spec:
    """The spec by which the defense's process, which has no network, reads a release that is given by a hub id.

    Raises:
        NftbenchError: the release cannot be downloaded.
    """
    commit = workspace.plan.commits.get(spec)
    if commit is None:
        return spec
    own = dict(spec.parameters)
    return Spec(spec.name, tuple({**own, "path": str(hub.downloaded(own["path"], commit))}.items()))


def _publish(
    workspace: Workspace,
    spec: Spec,
    seed: int,
    key: str,
    folder: Path,
    theirs: Path,
    report: protecting.OwnerReport,
    seconds: float,
    base_sha256: str | None,
) -> None:
    """Examine what the defense's process has left, and store secret, second checkpoint and protection."""
    if networks.is_known(folder):  # whoever has the files needs no other copy, and it could differ
        shutil.rmtree(folder / OPENED, ignore_errors=True)
    _check_files(folder)
    own_code = needs_own_code(folder)
    if own_code:  # in a process aside, which ends with this
        registry.load(registry.find("defenses", spec.name))
    mask = protecting.load_mask(theirs)
    if (mask is not None) != workspace.plan.defenses[spec].keeps_secret:
        returned = "no secret" if mask is None else "a secret"
        raise NftbenchError(f"the class says keeps_secret = {mask is None}, but protect returned {returned}")
    opened = open_to_examine(workspace, folder)
    if (folder / OPENED).is_dir():
        _check_release(opened, mask)
        published = opened
    else:
        published = networks.load(folder, str(workspace.device))
        _check_release(published, mask)
        _check_published(folder, published)
    settings = published.network.config.to_dict()
    if networks.is_large(opened.network):  # one copy in memory
        published = Model(opened.network, published.tokenizer)
    protection = _examine(workspace, spec, seed, published, opened, mask, report, settings)
    protection = dataclasses.replace(
        protection,
        own_code=own_code or networks.has_custom_code(opened.network),
        ledger=_ledger(workspace, seed, report, seconds, protection.parameters),
    )
    # A killed attempt may have left its parts, which do not belong to these weights.
    for kind in ("secrets", "siblings", "protections"):
        workspace.store.discard(kind, key)
    # Without a second checkpoint the folder is empty: what is known not to be there need not be looked for again.
    sibling = theirs / protecting.SIBLING
    sibling.mkdir(exist_ok=True)
    workspace.store.make("siblings", key, functools.partial(shutil.copytree, sibling, dirs_exist_ok=True), mode=0o700)
    if mask is not None:
        held = {name: tensor.to(torch.uint8) for name, tensor in mask.items()}
        workspace.store.make("secrets", key, lambda draft: save_file(held, draft / "mask.safetensors"), mode=0o700)
    if workspace.reference(spec, seed)[0] == spec:
        base_sha256 = networks.tensors_sha256(folder)
    hashes = {"base_sha256": base_sha256, "start_sha256": _start_sha256(workspace, spec, seed)}
    found = {"protection.json": dataclasses.asdict(protection), BASE: hashes}
    workspace.store.make("protections", key, lambda draft: _write(draft, found))


def _ledger(
    workspace: Workspace, seed: int, report: protecting.OwnerReport, seconds: float, parameters: int
) -> OwnerLedger:
    """What the defense spent, and what the recipe allows. There is no limit where the suite's model is not made."""
    recipe = workspace.suite.pretraining
    spent = Spent(report.steps, report.tokens, parameters, seconds)
    if workspace.suite.given is not None:  # nobody knows what its pre-training took
        size = networks.load(base_folder(workspace, seed), "meta").network.num_parameters()
        return OwnerLedger(spent, Spent(parameters=int(recipe.allowance * size)))
    base = kept_bases(workspace, seed).get(recipe.steps)
    if base is None:  # an audited checkpoint, which no recipe of the suite has made
        return OwnerLedger(spent, Spent())
    with_text = workspace.suite.corpus.source != "none"
    block = make_corpus(workspace, seed).train.shape[1] if with_text else 0
    own = sum(parameter.numel() for parameter in Owner(workspace, seed).build().network.parameters())
    allowed = Spent(
        int(recipe.allowance * recipe.steps),
        int(recipe.allowance * recipe.steps * recipe.batch * block),
        int(recipe.allowance * own),
        PATIENCE * base_seconds(base),
    )
    return OwnerLedger(spent, allowed)


def _write(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _check_files(folder: Path) -> None:
    """Refuse files that are no part of a release, before any is read: they could hold a secret, or lead elsewhere.

    Transformers loads another folder than the release's where an `adapter_config.json` or an index names one.
    """
    opened = folder / OPENED
    for path in sorted(folder.rglob("*")):
        top = opened if path.is_relative_to(opened) else folder
        name = path.relative_to(top).as_posix()
        if path.is_file() and not any(fnmatch.fnmatch(name, pattern) for pattern in FILES):
            raise NftbenchError(f"the release's folder holds a file that belongs to no model: {name}")
        if name in ("config.json", "generation_config.json") and path.stat().st_size > MOST_SETTINGS:
            size = path.stat().st_size
            raise NftbenchError(f"the release's {name} has {size} bytes; settings need at most {MOST_SETTINGS}")
        if name.endswith(".index.json"):
            for file in set(json.loads(path.read_bytes())["weight_map"].values()):
                if Path(file).name != file or not (path.parent / file).is_file():
                    raise NftbenchError(f"the release's {name} names {file}, which is no file beside it")


def _check_published(folder: Path, model: Model) -> None:
    """Refuse what is no part of a release, such as a secret mask in a buffer.

    A tensor is none if it is gone when the loaded model is saved again. Names in files and in a network may differ, and
    what transformers calls unexpected leaves out some names that a mask could have.
    """
    with tempfile.TemporaryDirectory() as again:
        networks.save(model, Path(again))
        extra = networks.tensor_names(folder) - networks.tensor_names(Path(again))
    if extra:
        raise NftbenchError(f"the release's files hold a tensor that its architecture lacks: {min(extra)}")


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
    workspace: Workspace,
    spec: Spec,
    seed: int,
    model: Model,
    opened: Model,
    mask: Mask | None,
    report: protecting.OwnerReport,
    after: Mapping[str, Any],
) -> Protection:
    """What the referee finds about a release.

    Args:
        model: the release as published.
        opened: the release as attackers open it, whose gradients are checked.
        report: what the defense says about its work.
        after: the configuration as published.
    """
    owner = Owner(workspace, seed)
    texts = _plain_texts(workspace, seed, opened, _reference_model(workspace, spec, seed) or opened)
    loss, tokenizer_changed = _probe(workspace, owner, model, texts)
    _check_modes(opened.network, loss)
    error, unchecked = _checked_gradients(opened.network, loss, workspace.seed_of("probe", seed))
    # Read again: a large reference must not be in memory while gradients are checked.
    reference = _reference_model(workspace, spec, seed) or opened
    _check_direction(opened.network, reference.network, texts)
    readings = [plain_text.read(one.network, texts) if texts else {} for one in (opened, reference)]
    before = _settings(owner)
    ignored = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return Protection(
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        seconds=report.seconds,
        gradient_error=error,
        config_changed={
            name: after.get(name) for name in sorted({*before, *after} - ignored) if before.get(name) != after.get(name)
        },
        tokenizer_changed=tokenizer_changed,
        density={name: float(tensor.float().mean()) for name, tensor in mask.items()} if mask is not None else {},
        series=report.series,
        unchecked=unchecked,
        rewrite=symmetries.unknown(opened.network) if opened.tokenizer is not None else None,
        plain_text=readings[0],
        reference_plain_text=readings[1],
    )


def _settings(owner: Owner) -> dict[str, Any]:
    """The configuration of the base model."""
    given = owner.given_folder()
    config = networks.config_of(given) if given is not None else owner.build().network.config
    found: dict[str, Any] = config.to_dict()
    return found


def _reference_model(workspace: Workspace, spec: Spec, seed: int) -> Model | None:
    """The release of the reference row; None where the row is its own reference, or that release cannot be made."""
    reference, key = workspace.reference(spec, seed)
    folder = workspace.store.artifact("releases", key) if reference != spec and key is not None else None
    return open_to_examine(workspace, folder) if folder is not None else None


def _plain_texts(workspace: Workspace, seed: int, opened: Model, reference: Model) -> PlainTexts | None:
    """Text to read release and reference by; None where they read none, or other words than each other."""
    own, usual = opened.tokenizer, reference.tokenizer
    if own is None or usual is None or own.get_vocab() != usual.get_vocab():
        return None
    return plain_text.collect(workspace, seed, reference)


@torch.no_grad()
def _check_modes(network: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> None:
    """Refuse a release that computes something else while it is trained, as under noise that is off in evaluation.

    It would keep its utility, and no attack could train it.
    """
    trained, evaluated = (float(loss(network.train(training))) for training in (True, False))
    if not math.isclose(trained, evaluated, rel_tol=MODES):
        raise NftbenchError(f"the release's loss is {trained:.4f} in training mode and {evaluated:.4f} in evaluation")


def _check_direction(network: nn.Module, reference: nn.Module, texts: PlainTexts | None) -> None:
    """Refuse a release that reads ahead: its predictions depend on the words that follow, or on how many do.

    A configuration can ask for that in many architectures of transformers. Running text would then be predicted from
    itself, so that utility seems kept, and whoever trains the release on text would teach it to copy.
    """
    if texts is None:
        return
    moved = plain_text.read_ahead(network, texts)
    if not moved <= AHEAD:
        moved -= plain_text.read_ahead(reference, texts)
    if not moved <= AHEAD:
        raise NftbenchError(f"the release reads ahead: later words move its predictions by {moved:.2g} bits")


def _checked_gradients(
    network: nn.Module, loss: Callable[[nn.Module], torch.Tensor], seed: int
) -> tuple[float | None, str | None]:
    """The error of the gradients, or why they cannot be checked: some layers cannot compute in float64."""
    measure = large_gradients.gradient_error if networks.is_large(network) else gradient_error
    try:
        return measure(network, loss, seed), None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _probe(
    workspace: Workspace, owner: Owner, model: Model, texts: PlainTexts | None
) -> tuple[Callable[[nn.Module], torch.Tensor], bool]:
    """A loss to check the release's gradients with, and whether its tokenizer differs from the corpus's.

    It is the loss on held-out text and on prompts of the ranked tasks: a release may compute something else there.

    Raises:
        NftbenchError: the release's logits have the wrong shape, or its context is shorter than a block of its text or
            than a prompt that its reference can read.
    """
    pretraining_task = workspace.suite.pretraining.task
    if pretraining_task is not None:
        task = owner.task(pretraining_task)
        batch = task.split("train").batch(range(min(64, len(task.split("train")))))
        return lambda network: task.loss(network, batch), False
    corpus = owner.corpus
    if model.tokenizer is None:
        raise NftbenchError("the release has no tokenizer")
    networks.check_words(model, "the release")
    words = min(len(model.tokenizer), model.network.get_input_embeddings().num_embeddings)
    is_large = networks.is_large(model.network)
    tokens = text_of(corpus, words, str(workspace.device))[: 1 if is_large else None]
    block, half = tokens.shape[1], tokens.shape[1] // 2
    prompts = (
        [prompt for some in texts.prompts.values() for prompt in some[: 1 if is_large else PROBED] if len(prompt) > 1]
        if texts
        else []
    )
    longest = max((len(prompt) for some in texts.prompts.values() for prompt in some), default=0) if texts else 0
    for name, length in (("a block of its text", block), ("a prompt of its tasks", longest)):
        if window(model) < length:  # what it cannot read would be cut from the documents of whoever fine-tunes it
            raise NftbenchError(f"the release reads {window(model)} tokens at once, {name} has {length}")

    def loss(network: nn.Module) -> torch.Tensor:
        with networks.seeded(0):  # the same dropout in every call
            logits = network(input_ids=tokens).logits[:, :-1]
            # Tasks ask for the logits of the last positions only, which a network may compute in another way.
            last = loglikelihood.logits_at_end(network, tokens[:, :-1], half)
        # Not the network's own loss: transformers computes it in float32, too coarse for central differences.
        found, true = torch.cat([logits, last], 1), torch.cat([tokens[:, 1:], tokens[:, -half:]], 1)
        value = nn.functional.cross_entropy(found.flatten(0, 1).double(), true.flatten())
        return value + _prompts_loss(network, prompts) if prompts else value

    with torch.no_grad():
        logits = model.network(input_ids=tokens).logits
    if logits.shape[-1] < words or logits.shape[:2] != tokens.shape:
        raise NftbenchError(f"the release gives logits of shape {tuple(logits.shape)} for {words} words")
    return loss, _differs(model.tokenizer, corpus, workspace.suite)


def _prompts_loss(network: nn.Module, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Next-token loss on prompts, in nats per token."""
    ids, real = plain_text.padded(prompts)
    ids = ids.to(next(network.parameters()).device)
    logits = network(input_ids=ids).logits[:, :-1][real[:, 1:]]
    return nn.functional.cross_entropy(logits.double(), ids[:, 1:][real[:, 1:]])


def _differs(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, suite: Suite) -> bool:
    """Whether a tokenizer has other words or rules than the corpus's, or encodes some text in another way.

    A template through which the suite puts its prompts is a rule too: it could hide them.
    """
    usual = corpus.tokenizer
    own_rules, usual_rules = ([tokenization_rules(one), chat.rules(suite, one)] for one in (tokenizer, usual))
    if own_rules != usual_rules:
        return True
    beginnings = [usual.decode(block[: 2 + index % len(block)]) for index, block in enumerate(corpus.heldout[:64])]
    texts = [*sorted(usual.get_vocab()), *beginnings]
    own, expected = (loglikelihood.Encoder(one, 0) for one in (tokenizer, usual))
    return any(
        own.tokens(texts, special=special) != expected.tokens(texts, special=special) for special in (True, False)
    )
