"""Build, load and save models: the one place that calls `from_pretrained`.

Weights are read from safetensors only and no remote code is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from nftbench.contract import Model
from nftbench.errors import NftbenchError, suggest
from nftbench.models import architectures

AS_WELL = 0.01
"""Nats per token by which a network may read worse that is said to read as well: far more than rounding, far less than
what a task is about."""

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
architectures.register()


def build(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, seed: int, device: str) -> Model:
    """An untrained causal LM: `settings` are `model_type` and fields of its configuration.

    Raises:
        NftbenchError: unknown `model_type` or field, or settings that make no model.
    """
    fields = dict(settings)
    model_type = fields.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        raise NftbenchError(
            f"model.model_type: no architecture {model_type!r}{suggest(model_type, list(CONFIG_MAPPING_NAMES))}"
        ) from None
    valid = {*known.to_dict(), *known.attribute_map, "attn_implementation"}
    for field in fields:
        if field not in valid:
            raise NftbenchError(f"model.{field}: {model_type} has no such field{suggest(field, sorted(valid))}")
    if tokenizer is not None:
        fields |= {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    try:
        return Model(_from_config(AutoConfig.for_model(model_type, **fields), seed, device), tokenizer)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # each architecture refuses settings in its own way: sizes, names, types
        reason = " ".join(str(error).split())
        raise NftbenchError(f"model: {model_type} cannot be built: {type(error).__name__}: {reason}") from error


def untrained(network: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A network of the same architecture and device with freshly drawn weights."""
    config = type(network.config).from_dict(network.config.to_dict())
    config._attn_implementation = network.config._attn_implementation
    with seeded(seed):
        fresh = type(network)(config)
    return fresh.to(device=network.device, dtype=network.dtype)


def load(path: str | Path, device: str = "cpu", *, local: bool = True, attacker: bool = False) -> Model:
    """A causal LM and its tokenizer from a local folder, or from the hub where `local` is False.

    Weights come in float32: an attacker may train at any precision, whatever the release was stored in. For an
    `attacker` every weight of the files can be trained, whatever the architecture makes of it, dropout is off, which
    the release's configuration could otherwise turn into noise that drowns training, and the object does not know the
    path that it came from.

    Raises:
        NftbenchError: there is no such model, its weights are no safetensors, or the files are damaged.
    """
    if local and not Path(path).is_dir():
        raise NftbenchError(f"{path}: no such model folder")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=local)
        if attacker:
            _without_dropout(config)
        network = _kind(config).from_pretrained(
            path,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=local,
        )
        tokenizer = _tokenizer(path, local)
    except Exception as error:  # safetensors, json and hub errors have no common class
        raise NftbenchError(f"{path}: cannot be loaded as a causal LM: {_first_line(error)}") from error
    if attacker:
        _trainable(network)
        for module in network.modules():
            if isinstance(module, PreTrainedModel):
                module.config._name_or_path = module.name_or_path = ""
        if tokenizer is not None:
            forget_path(tokenizer)
    return Model(network.to(device).eval(), tokenizer)


def forget_path(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer not know the folder that it was loaded from, beside which secrets may lie."""
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)


def _without_dropout(config: Any) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and name.endswith(("dropout", "drop", "pdrop", "dropout_rate")):
            setattr(config, name, 0.0)


def _trainable(network: PreTrainedModel) -> None:
    """Let every weight of the files be a parameter that trains, also those that the architecture freezes or holds as
    buffers."""
    network.requires_grad_(True)
    made: dict[Tensor, nn.Parameter] = {}
    for module in network.modules():
        published = module.state_dict().keys()
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if name in published and buffer.is_floating_point():
                delattr(module, name)
                module.register_parameter(name, made.setdefault(buffer, nn.Parameter(buffer)))


def has_own_code(network: PreTrainedModel) -> bool:
    """Whether what it computes is neither transformers' code nor nftbench's."""
    return not type(network).__module__.startswith(("transformers.", "nftbench."))


@torch.no_grad()
def by_the_library(network: PreTrainedModel, model_type: str, tokens: Tensor) -> PreTrainedModel:
    """A network of its owner's own code as transformers or nftbench would run it: with the same weights in the
    architecture `model_type`, or in one that its own derives from, where they fit and read `tokens` [rows, block] as
    well. The network as it is where they do not.

    Whoever holds the files need not run them by code that computes something else on a task's prompts, or something
    else backwards.
    """
    above = [getattr(kind, "config_class", None) for kind in type(network).__mro__]
    kinds = dict.fromkeys([type(AutoConfig.for_model(model_type)), *above, *type(network.config).__mro__])
    most = _reads(network, tokens) + AS_WELL
    for kind in kinds:
        plain = _in(kind, network)
        if plain is not None and _reads(plain, tokens) <= most:
            return plain
    return network


def _in(kind: Any, network: PreTrainedModel) -> PreTrainedModel | None:
    """The network's weights in the architecture of another configuration class, or None where they do not fit."""
    if kind not in AutoModelForCausalLM._model_mapping:
        return None
    config = kind.from_dict({name: value for name, value in network.config.to_dict().items() if name != "model_type"})
    config._attn_implementation = network.config._attn_implementation
    plain = _from_config(config, 0, str(network.device))
    if has_own_code(plain):
        return None
    try:
        missing = plain.load_state_dict(network.state_dict(), strict=False).missing_keys
    except RuntimeError:  # other shapes
        return None
    return plain.eval() if not missing else None


def _reads(network: PreTrainedModel, tokens: Tensor) -> float:
    """Nats per token of running text [rows, block]."""
    logits = network.eval()(input_ids=tokens).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten()))


def save(model: Model, folder: Path) -> None:
    """Write a plain `save_pretrained` folder: configuration, safetensors, tokenizer; nothing else of the object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generation defaults of models that never generate
        model.network.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def sha256(folder: Path) -> str:
    """Hash of the weight files of a model folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tensors_sha256(folder: Path) -> str:
    """Hash of the tensors in a model folder: name, dtype, shape and bytes of each, in the order of their names.

    How the tensors are spread over files, and what the files say beside them, does not count.
    """
    digest = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in folder.glob("*.safetensors")]
        holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (a file is no mapping)
        for name in sorted(holder):
            tensor = holder[name].get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def derive(seed: int, *role: str) -> int:
    """A seed of its own for each role (init, pretrain, defense, attack, …), so that no two roles draw the same
    numbers."""
    return int.from_bytes(hashlib.sha256("|".join([str(seed), *role]).encode()).digest()[:6], "big")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generators as if freshly seeded, and leave them afterwards as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _from_config(config: Any, seed: int, device: str) -> PreTrainedModel:
    with seeded(seed):
        network: PreTrainedModel = _kind(config).from_config(config, dtype=torch.float32)
    return network.to(device)


def _kind(config: Any) -> Any:
    """A causal LM where the architecture has one; the linear family has none."""
    return AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel


def _tokenizer(path: str | Path, local: bool) -> PreTrainedTokenizerBase | None:
    if local and not any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, trust_remote_code=False, local_files_only=local
    )
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
