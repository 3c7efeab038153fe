"""What is known of a checkpoint before anything is trained, and whether it suits a suite.

Its configuration, tokenizer and the headers of its weights are looked at. A given base's weights on this machine are
read tensor by tensor; none is downloaded for that.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedConfig

from nftbench.data import chat
from nftbench.data.lm_eval_tasks import LoadedTextTask
from nftbench.data.window import window
from nftbench.device import Device
from nftbench.errors import NftbenchError, one_line
from nftbench.models import gguf, networks
from nftbench.planning import pinning, registry, task_files
from nftbench.planning.plan import Plan, given_path
from nftbench.planning.specs import task_spec
from nftbench.records import disk_budget
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running import cgroups, hub
from nftbench.running.workspace import Workspace, forget_tasks, load_task
from nftbench.suites.schema import Suite

CONFIG = "config.json"
INSIDE = (f"*/{CONFIG}", f"snapshots/*/{CONFIG}", "*.gguf")
"""Where a model lies in a folder that holds none, as patterns: the second one in the hub's cache."""
SAMPLED = 64
"""How many documents of a task are looked at, to see whether a window holds its prompts."""
CUT = 0.1
"""The largest share of prompts that may be longer than the window: real data have a few very long documents."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be audited."""

    place: str
    """Its folder or hub id."""
    architecture: str
    """`model_type` of its configuration."""
    parameters: int
    words: int
    """The size of its tokenizer's vocabulary."""
    window: int
    """The most tokens of one input."""


def examine(place: str, revision: str | None = None) -> Checkpoint:
    """Look at a folder, a GGUF file or a hub id (`organisation/name`) without reading a weight.

    Raises:
        NftbenchError: it is none of these, its architecture is unknown or no causal LM, it has no tokenizer or one with
            more words than it embeds, it is an adapter or quantized, its weights are pickled, damaged or lack a tensor,
            or the hub cannot be asked.
    """
    with hub.files(place, revision) as files:
        return _examine(place, files.path)


def check_base(suite: Suite) -> str | None:
    """Refuse a given base that is not the one that the suite pins, or on which every cell would fail.

    Returns what is still to be checked, where its weights would have to be downloaded for that.

    Raises:
        NftbenchError: as in `examine`; or its weights are not finite, its window is shorter than a block of the
            suite's text, or its chat template cannot be used.
    """
    given = suite.given
    if given is None:
        return None
    if given.sha256 is not None:
        pinning.pinned(suite)  # before its weights are read
    with hub.files(given.path, given.revision) as files:
        found = _examine(given.path, files.path)
        _check_window(found, suite)
        if given.apply_chat_template:
            chat.check(networks.load_tokenizer(files.path), given.path)
        if not files.with_weights:
            return f"{given.path}: its weights are not on this machine; once downloaded they must be finite"
        _check_finite(files.path, given.path)
    return None


def check_given(plan: Plan) -> None:
    """Refuse a given release, such as a checkpoint, on which every cell would fail.

    Raises:
        NftbenchError: as in `examine`; or its weights are not finite, its window is shorter than a block of the
            suite's text, or its chat template cannot be used.
    """
    reads_text = plan.suite.corpus.source != "none"
    for spec in plan.defenses:
        if (place := given_path(spec)) is None:
            continue
        with hub.files(place, plan.commits.get(spec)) as files:
            if reads_text:
                _check_window(_examine(place, files.path), plan.suite)
            if plan.suite.given is not None and plan.suite.given.apply_chat_template:
                chat.check(networks.load_tokenizer(files.path), place)
            if files.with_weights:
                _check_finite(files.path, place)


def _check_window(found: Checkpoint, suite: Suite) -> None:
    if found.window < suite.corpus.block:
        raise NftbenchError(
            f"{found.place} reads {found.window} tokens at once, and corpus.block is {suite.corpus.block}; set a "
            "shorter block"
        )


def check_prompts(plan: Plan, store: Store) -> None:
    """Refuse a given base whose window is shorter than the prompts of the plan's text tasks.

    lm-eval cuts the beginning of such a prompt, which often holds the instructions. Tasks are left out whose documents
    would have to be downloaded.

    Raises:
        NftbenchError: names the task; or a task cannot be read by the model's tokenizer.
    """
    given = plan.suite.given
    if given is None:
        return
    suite = plan.suite
    listed = dict.fromkeys(map(task_spec, (*suite.tasks, *suite.benign, *suite.utility)))
    tasks = [task for task in listed if _is_here(task, plan)]
    part = Workspace(replace(plan, limit=min(plan.limit or SAMPLED, SAMPLED)), store)
    with hub.files(given.path, given.revision) as files:
        model = networks.load(files.path, "meta")
        for task in tasks:
            loaded = load_task(part, task, suite.seeds[0], model)
            if isinstance(loaded, LoadedTextTask):
                _check_lengths(given.path, task, loaded, window(model))
    forget_tasks()  # they hold few documents


def _is_here(task: Spec, plan: Plan) -> bool:
    """Whether the task is a text task whose documents are generated, or lie on this machine."""
    path = registry.find("tasks", task.name).text_file
    if path is None:
        return False
    settings = task_files.settings(path)
    return bool(settings.get("custom_dataset")) or bool(task_files.data_files(plan.data, settings))


def _check_lengths(place: str, name: Spec, task: LoadedTextTask, longest: int) -> None:
    split = task.split("train" if task.trainable else "test")
    encoded = split.encoder.encode([pair for document in split.documents for pair in document.pairs])
    lengths = sorted(len(one.context) + len(one.continuation) - 1 for one in encoded)  # the last token is not read
    cut = sum(length > longest for length in lengths) / len(lengths)
    if cut > CUT:
        raise NftbenchError(
            f"{place} reads {longest} tokens at once, and {cut:.0%} of the prompts of {name} are longer, up to "
            f"{lengths[-1]}; choose a base with a longer window, or tasks with shorter prompts by --set 'tasks=[…]'"
        )


def _examine(place: str, path: Path) -> Checkpoint:
    if gguf.is_file(path):
        header, config = gguf.header(path), gguf.config(path)
        _check_causal(config, place)
        return Checkpoint(place, header.architecture, header.parameters, header.words, header.window)
    networks.check_is_file(path / CONFIG)
    if not (path / CONFIG).is_file() and not (path / "adapter_config.json").is_file():
        inside = next((one for pattern in INSIDE for one in sorted(path.glob(pattern))), None)
        advice = f"; give {inside.parent if inside.name == CONFIG else inside}" if inside is not None else ""
        raise NftbenchError(f"{place!r} holds no model: it lacks a {CONFIG}{advice}")
    try:
        _check_plain(path)
        _check_direction(path, place)
        model = networks.load(path, "meta")
    except NftbenchError as error:
        raise NftbenchError(str(error).replace(str(path), place)) from error
    if model.tokenizer is None:
        raise NftbenchError(
            f"{place!r} has no tokenizer (tokenizer.json); save the one that it was trained with into the folder"
        )
    networks.check_words(model, place)
    if model.tokenizer.bos_token_id is None and model.tokenizer.eos_token_id is None:
        raise NftbenchError(
            f"{place}: its tokenizer has neither a token that begins a text nor one that ends it; name one as "
            "eos_token in tokenizer_config.json"
        )
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Checkpoint(place, model.network.config.model_type, parameters, len(model.tokenizer), window(model))


def _check_direction(folder: Path, place: str) -> None:
    """Refuse an encoder by its configuration as stored: transformers loads the decoder alone of some pairs of both."""
    try:
        config = networks.config_of(folder)
    except Exception:  # transformers says what is wrong when the model is loaded
        return
    _check_causal(config, place)


def _check_causal(config: PreTrainedConfig, place: str) -> None:
    if (reason := networks.not_causal(config)) is not None:
        raise NftbenchError(f"{place!r} is no causal LM: {reason}; give a model that AutoModelForCausalLM is for")


def _check_plain(folder: Path) -> None:
    """Refuse a configuration that is none, and quantized weights, which cannot be trained.

    Transformers would fail on the one without a reason, and ask for the package that made the others.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return  # transformers says what is wrong
    if not isinstance(settings, dict):
        raise NftbenchError(f"{folder}: {CONFIG} holds no settings but {one_line(json.dumps(settings))[:80]}")
    quantized = settings.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise NftbenchError(
            f"{folder}: its weights are quantized ({method}) and cannot be trained; take the checkpoint that it was "
            "made from, or save what dequantize() gives"
        )


def _check_finite(place: Path, name: str) -> None:
    """Read the weights of a folder or GGUF file tensor by tensor."""
    if gguf.is_file(place):
        gguf.check_finite(place)
        return
    for path in networks.weight_files(place):
        with safe_open(path, framework="pt") as file:
            for tensor_name in file.keys():  # noqa: SIM118 (a file is no mapping)
                tensor = file.get_tensor(tensor_name)
                if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                    raise NftbenchError(f"{name}: holds weights that are not finite: {tensor_name} in {path.name}")


# ---------------------------------------------------------------------------------------------------- memory and disk


def memory_of(device: Device) -> float:
    """Bytes of memory that this machine, or its card, has in all, or that its container or job may use."""
    if device.kind == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(str(device)).total_memory)
    return min(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), cgroups.memory_limit())


def free_on_disk(folder: Path) -> float:
    """Bytes that are free where a folder lies, or will lie."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def workers_that_fit(
    asked: int | None, usual: int, needed: Callable[[int], float], device: Device, most_for: str = ""
) -> int:
    """How many workers memory allows: as many as asked for, or else at most the usual number.

    Args:
        needed: the bytes that a number of workers take together.
        most_for: what takes most of it, to be added to a sentence.

    Raises:
        NftbenchError: not even one fits, or fewer than were asked for.
    """
    there = memory_of(device)
    fits = itertools.takewhile(lambda number: needed(number) <= there, range(1, max(asked or 1, usual) + 1))
    fit = max(fits, default=0)
    if fit < (asked or 1):
        many = f"{asked} workers need" if asked is not None and asked > 1 else "a worker needs"
        advice = f"; --jobs {fit} would fit" if fit else "; a machine with more memory is needed"
        total = needed(asked or 1)
        raise NftbenchError(
            f"too little memory: {many} about {_size(total)}{most_for}, and there are {_size(there)}{advice}"
        )
    return asked or min(usual, fit)


def check_disk(grows: float, least: float, passing: float, folder: Path) -> None:
    """Refuse a run whose releases do not fit on the disk, or not into the budget of --cache-size.

    Args:
        grows: bytes by which the cache grows if nothing is deleted.
        least: bytes of it that must be there at one time.
        passing: bytes beside it while jobs run.

    Raises:
        NftbenchError: names the folder and the sizes, and what would fit.
    """
    free, limit = free_on_disk(folder), disk_budget.budget()
    if limit is not None and limit < least:
        raise NftbenchError(
            f"--cache-size {_size(limit)} is too little: jobs need models of {_size(least)} at one time; "
            f"--cache-size {_rounded(least)} would fit"
        )
    there = disk_budget.size(folder) if limit is not None else 0
    needed = passing + (grows if limit is None else min(grows, max(limit - there, least)))
    if free >= needed:
        return
    room = free - passing + disk_budget.size(folder)
    advice = f"--cache-size {_rounded(least)} would fit, or " if limit is None and room > 1.1 * least else ""
    raise NftbenchError(
        f"too little disk: the cache {folder} grows by about {_size(needed)}, and {_size(free)} are free; {advice}"
        "choose another folder with --cache"
    )


def _rounded(least: float) -> str:
    """A size as --cache-size takes it, not below `least`."""
    return f"{math.ceil(least / 1e8) / 10:g}GB"


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
