"""Build, load and save models. Only this module calls `from_pretrained` for a model.

Weights are read from safetensors files alone, and code that comes with a model is never run: pickled weights and remote
code could execute anything on the machine that measures.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from nftbench.contract import Model
from nftbench.errors import NftbenchError, one_line, shortened, suggest
from nftbench.models import architectures, gguf

LOSS_TOLERANCE = 0.01
"""Tolerance, in nats per token, for calling two networks equivalent on text. Rounding stays far below it, and the
differences that tasks measure are far larger."""

LARGE = 50_000_000
"""The referee's own checks of a network with more parameters than this read less text, so that they take no more than
about three times its float32 weights in memory."""

SHARD = 4_000_000
"""Bytes of tensors in a file of a large network. A larger tensor has a file of its own."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, or the one that names their parts."""

LIBRARIES = (Path(transformers.__file__).resolve().parent, Path(__file__).resolve().parent)
"""The folders of the architectures that anyone can run: those of transformers, and this one."""

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
architectures.register()


def build(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, seed: int, device: str) -> Model:
    """Build an untrained causal LM.

    Args:
        settings: `model_type` and fields of that architecture's configuration; or the `path` of a checkpoint, whose
            architecture and tokenizer are taken, and on the hub its `revision`.
        tokenizer: sets the vocabulary size and the special tokens; None for models that read no tokens.

    Raises:
        NftbenchError: `model_type` or a field is unknown, or the architecture rejects the values.
    """
    fields = dict(settings)
    if "path" in fields:
        return build_as(fields["path"], seed, device, revision=fields.get("revision"))
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
    except Exception as error:  # architectures raise errors of many classes for invalid settings
        reason = " ".join(str(error).split())
        raise NftbenchError(f"model: {model_type} cannot be built: {type(error).__name__}: {reason}") from error


def build_as(path: str | Path, seed: int, device: str, *, revision: str | None = None, **changes: Any) -> Model:
    """Build an untrained model of a checkpoint's architecture, with its tokenizer.

    Args:
        path: a folder, a GGUF file or a hub id.
        changes: fields of its configuration that get other values.

    Raises:
        NftbenchError: the configuration has no such field, or the architecture rejects the values.
    """
    config = config_of(path, revision)
    valid = {*config.to_dict(), *config.attribute_map}
    for field, value in changes.items():
        if field not in valid:
            raise NftbenchError(f"model.{field}: {config.model_type} has no such field{suggest(field, sorted(valid))}")
        setattr(config, field, value)
    try:
        tokenizer = _tokenizer(path, local=True) if Path(path).is_dir() else None
        return Model(_from_config(config, seed, device), tokenizer)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # architectures raise errors of many classes for invalid settings
        raise NftbenchError(
            f"model: cannot be built: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def config_of(path: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a folder, a GGUF file or a model on the hub.

    Whoever loads a model chooses how attention is computed and what a forward pass returns. A configuration can name
    code on the hub for the one, and return tuples by the other, which no task and no attack could read.
    """
    place = Path(path)
    if gguf.is_file(place):
        return gguf.config(place)
    found: PreTrainedConfig = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=False, local_files_only=place.is_dir()
    )
    found._attn_implementation = None
    found.return_dict, found.output_attentions, found.output_hidden_states = True, False, False
    return found


def settings_of(path: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The fields of a checkpoint's configuration, its `model_type` among them."""
    config = config_of(path, revision)
    found: dict[str, Any] = config.to_dict()
    return found | {name: getattr(config, name) for name in config.attribute_map}


def is_large(network: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in network.parameters()) > LARGE


def not_causal(config: PreTrainedConfig) -> str | None:
    """Why networks of a configuration are no causal LMs, which read text in one direction; None if they are."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    kind, name = type(config), config.model_type
    if kind not in AutoModelForCausalLM._model_mapping:
        return f"transformers has no causal LM of the architecture {name}"
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} has an encoder, which reads the whole text"
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return f"{name} reads text in both directions"
    for field, value in BOTH_DIRECTIONS.items():
        if any(getattr(one, field, None) is value for one in (config, config.get_text_config())):
            return f"its {field} is {value!r}, so that it reads text in both directions"
    return None


BOTH_DIRECTIONS = {"is_causal": False, "use_bidirectional_attention": True, "attn_type": "bi"}
"""Settings by which decoders read text in both directions: of any, of Gemma's embedding models, and of XLNet."""


def check_words(model: Model, name: str) -> None:
    """Refuse a tokenizer with words that the network does not embed, which it would fail on.

    Special words may lack an embedding, as Gemma 3's token for images does: text does not contain them.

    Raises:
        NftbenchError: says how many words there are.
    """
    tokenizer, embedded = model.tokenizer, model.network.get_input_embeddings().num_embeddings
    assert tokenizer is not None
    words, used = tokenizer.get_vocab(), {tokenizer.bos_token_id, tokenizer.eos_token_id}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    lost = [word for word, index in words.items() if index >= embedded and index not in special]
    if lost:
        raise NftbenchError(
            f"{name}: its tokenizer has {len(words)} words, and its model embeds {embedded}, without {_listed(lost)}; "
            "give the tokenizer that the model was trained with"
        )


def check_finite(network: nn.Module, name: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        NftbenchError: names a tensor with such weights.
    """
    for tensor, weight in network.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise NftbenchError(f"{name}: holds weights that are not finite: {tensor}")


def untrained(network: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Make a network of the same architecture, precision and device, with weights drawn from `seed`.

    It has the same parameters: where `network` was loaded for an attacker, saved buffers are parameters here too.
    """
    config = type(network.config).from_dict(network.config.to_dict())
    config._attn_implementation = network.config._attn_implementation
    with seeded(seed):
        fresh = type(network)(config)
    if dict(fresh.named_parameters()).keys() != dict(network.named_parameters()).keys():
        _make_all_trainable(fresh)
    return fresh.to(device=network.device, dtype=network.dtype)


def load(
    path: str | Path,
    device: str = "cpu",
    *,
    local: bool = True,
    attacker: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Load a causal LM and its tokenizer from a local folder or GGUF file, or from the hub if `local` is False.

    Weights are converted to `dtype`, whatever precision the release was stored in, those of a GGUF file to float32. On
    the device `meta` the names and shapes of tensors are checked, and no weights are read. Neither the model nor its
    tokenizer names the folder that it came from: the owner's secrets may lie in a neighbouring folder, and what is
    loaded is shared with plugins.

    `attacker` removes obstacles that a release could place in front of whoever fine-tunes it:

    - Every floating-point weight in the files becomes a trainable parameter, even if the architecture freezes it.
    - Dropout is turned off. A configuration with high dropout would drown training in noise.

    Raises:
        NftbenchError: the model does not exist, has no safetensors weights, its files lack a tensor of its
            architecture or hold one of another shape, or they or its tokenizer are damaged.
    """
    if local and gguf.is_file(path):
        network, tokenizer = gguf.load(Path(path), device)
    else:
        network, tokenizer = _load_plain(path, device, local, attacker, dtype)
    for module in network.modules():
        if isinstance(module, PreTrainedModel):
            module.config._name_or_path = module.name_or_path = ""
    if tokenizer is not None:
        forget_path(tokenizer)
    if attacker:
        _make_all_trainable(network)
    return Model(network.to(device).eval(), tokenizer)


def _load_plain(
    path: str | Path, device: str, local: bool, attacker: bool, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The network and the tokenizer in a folder or on the hub, as `load` describes them."""
    if local:
        _check_folder(Path(path))
    try:
        config = config_of(path)
        if attacker:
            _disable_dropout(config)
        with warnings.catch_warnings():
            # A configuration that asks for empty tensors is refused below, where its files are compared with it.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            network, found = _auto_class(config).from_pretrained(
                path,
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                local_files_only=local,
                device_map="meta" if device == "meta" else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                experts_implementation="eager",  # the others cannot compute in float64, in which gradients are checked
            )
    except KeyError as error:
        raise NftbenchError(f"{path}: config.json asks for {error}, which transformers does not know") from error
    except Exception as error:  # the errors of safetensors, json and the hub share no base class
        raise NftbenchError(f"{path}: cannot be loaded as a causal LM: {_first_line(error)}") from error
    _check_complete(path, network, found)
    try:
        tokenizer = _tokenizer(path, local)
    except Exception as error:  # so do those of tokenizers
        raise NftbenchError(f"{path}: its tokenizer cannot be read: {one_line(str(error))}") from error
    return network, tokenizer


def _check_complete(path: str | Path, network: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse files that do not hold all weights of the network: transformers draws missing ones at random."""
    for name, held, asked in sorted(found["mismatched_keys"]):
        raise NftbenchError(
            f"{path}: {name} has the shape {list(held)} in the files, and config.json asks for {list(asked)}"
        )
    if Path(path).is_dir():
        _check_not_quantized(Path(path), network)
    if found["unexpected_keys"]:
        _check_all_layers(path, network, found["unexpected_keys"])
    missing, head = set(found["missing_keys"]), network.get_output_embeddings()
    if not missing:
        return
    of_head = {name for name, weight in network.named_parameters() if head is not None and weight is head.weight}
    advice = "; if its head is tied to its embeddings, config.json has to say so" if missing <= of_head else ""
    raise NftbenchError(f"{path}: the files lack {_listed(missing)}{_but(found['unexpected_keys'])}{advice}")


def _check_all_layers(path: str | Path, network: PreTrainedModel, unread: Iterable[str]) -> None:
    """Refuse files with more layers than the network: config.json was changed, and another model would be measured."""
    names = list(network.state_dict())
    own, layered = {NUMBER.sub("", name) for name in names}, any(map(NUMBER.search, names))
    # A network of no layers has no name to compare with: whatever lies in a layer is of one that is not counted.
    more = [name for name in unread if NUMBER.search(name) and (not layered or NUMBER.sub("", name) in own)]
    if more:
        raise NftbenchError(
            f"{path}: the files hold {_listed(more)}, of layers that config.json does not count; to use fewer layers, "
            "save the model with them alone"
        )


def _check_not_quantized(path: Path, network: PreTrainedModel) -> None:
    """Refuse quantized weights of which config.json does not say so. Transformers would read the integers as weights.

    Such weights are whole numbers, or eight-bit floats with scales beside them.
    """
    own = {name for name, _ in network.named_parameters()}
    stored: dict[str, str] = {}
    for file in weight_files(path):
        with safe_open(file, framework="pt") as opened:
            stored |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    for name in sorted(name for name in stored if name in own or name.endswith(".weight")):
        scaled = stored[name].startswith("F8") and any(other.startswith(f"{name}_scale") for other in stored)
        if scaled or not stored[name].startswith(("F", "BF")):
            raise NftbenchError(
                f"{path}: its weights are quantized ({name} is stored as {stored[name]}) and cannot be trained; "
                "take the checkpoint that it was made from"
            )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise NftbenchError(f"{path}: no such model folder")
    if (path / "adapter_config.json").is_file():
        raise NftbenchError(
            f"{path}: holds an adapter and not the model that it adapts; save what merge_and_unload gives"
        )
    if not any(path.glob("*.safetensors")):
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern)]
        advice = (
            f"; {_listed(pickled)} could run code when read: load it once and save it with save_pretrained"
            if pickled
            else ""
        )
        raise NftbenchError(f"{path}: has no weights in the safetensors format{advice}")
    for name in (WHOLE, INDEX):
        check_is_file(path / name)
    for file in weight_files(path):
        check_is_file(file)
        if not file.is_file():
            raise NftbenchError(f"{path}: its index names {file.name}, which is not there; download it again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except Exception as error:  # safetensors raises errors of its own
            raise NftbenchError(
                f"{path}: {file.name} is damaged or incomplete; download it again ({_first_line(error)})"
            ) from error


def check_is_file(path: Path) -> None:
    """Refuse what has the name of a model's file and is none. A path where nothing is passes.

    Raises:
        NftbenchError: it is a link to a file that is not there, or a folder.
    """
    if path.is_symlink() and not path.exists():
        raise NftbenchError(
            f"{path.parent}: {path.name} is a link to {path.readlink()}, which is not there, as where the hub's cache "
            "was copied without its blobs; copy the files themselves (cp -rL), or download them again"
        )
    if path.is_dir():
        raise NftbenchError(f"{path.parent}: {path.name} is a folder, and should be a file")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights: `model.safetensors`, or the parts that its index names.

    Raises:
        NftbenchError: there is neither, or the index cannot be read.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        held = _listed(file.name for file in folder.glob("*.safetensors"))
        raise NftbenchError(f"{folder}: holds {held}, and neither {whole.name} nor the index {index.name}")
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise NftbenchError(f"{folder}: {index.name} cannot be read: {_first_line(error)}") from error


def _listed(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    return shortened(sorted(names), 3)


def _but(unexpected: Iterable[str]) -> str:
    listed = _listed(unexpected)
    return f"; they hold {listed} instead" if listed else ""


def forget_path(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove from a tokenizer the path of its folder, because the owner's secrets may lie in a neighbouring folder."""
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)


NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""The number of a layer in a tensor's name, as in `model.layers.3.mlp.up_proj.weight`."""
NOISE = re.compile("drop|jitter")
"""What the names of settings contain that make a network compute something else while it is trained."""


def _disable_dropout(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _disable_dropout(value)
        elif NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))  # some configurations take whole numbers alone


def _make_all_trainable(network: PreTrainedModel) -> None:
    """Make every weight in the files a trainable parameter, including frozen parameters and saved buffers."""
    network.requires_grad_(True)
    converted: dict[Tensor, nn.Parameter] = {}  # a buffer shared by two modules stays shared
    for module in network.modules():
        saved = module.state_dict().keys()
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if name in saved and buffer.is_floating_point():
                delattr(module, name)
                module.register_parameter(name, converted.setdefault(buffer, nn.Parameter(buffer)))


def is_known(folder: Path) -> bool:
    """Whether a folder holds a model of an architecture of transformers or nftbench, which loads without other code."""
    path = folder / "config.json"
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    if model_type not in CONFIG_MAPPING:
        return False
    config = CONFIG_MAPPING[model_type]
    auto = AutoModelForCausalLM if config in AutoModelForCausalLM._model_mapping else AutoModel
    found = auto._model_mapping.get(config, None)
    return found is not None and all(map(_of_library, found if isinstance(found, tuple) else (found,)))


def has_custom_code(network: PreTrainedModel) -> bool:
    """Whether the network computes by code that comes from neither transformers nor nftbench."""
    return not _of_library(type(network))


def _of_library(cls: Any) -> bool:
    """Whether a network's class comes from transformers or nftbench.

    A class may call its module what it likes. So its module, as loaded, has to hold this very class, and the files of
    both the class and its `forward` have to lie in one of the two packages.
    """
    written: Any = inspect.unwrap(cls.forward)
    module: Any = sys.modules.get(cls.__module__)
    if getattr(module, cls.__qualname__, None) is not cls:
        return False
    files = [getattr(module, "__file__", None), written.__code__.co_filename]
    return all(file is not None and _in_library(Path(file).resolve()) for file in files)


def _in_library(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in LIBRARIES)


@torch.no_grad()
def in_known_architecture(network: PreTrainedModel, model_type: str, tokens: Tensor) -> PreTrainedModel:
    """Run the weights of a network with custom code in an architecture of transformers or nftbench instead.

    An attacker who holds the files need not run the owner's code. That code could compute something else on a task's
    prompts, or return wrong gradients.

    The architectures tried are `model_type` and those that the custom classes inherit from. The first one is taken that
    has the same weights and whose loss on `tokens` [rows, block] is within `LOSS_TOLERANCE`. If there is none, the
    network is returned as it is.
    """
    inherited = [getattr(cls, "config_class", None) for cls in type(network).__mro__]
    config_classes = dict.fromkeys([type(AutoConfig.for_model(model_type)), *inherited, *type(network.config).__mro__])
    highest_loss = _loss_per_token(network, tokens) + LOSS_TOLERANCE
    for config_class in config_classes:
        converted = _converted(network, config_class)
        if converted is not None and _loss_per_token(converted, tokens) <= highest_loss:
            return converted
    return network


def _converted(network: PreTrainedModel, config_class: Any) -> PreTrainedModel | None:
    """The network's weights in the architecture of `config_class`, or None if they do not fit."""
    if config_class not in AutoModelForCausalLM._model_mapping:
        return None
    fields = {name: value for name, value in network.config.to_dict().items() if name != "model_type"}
    config = config_class.from_dict(fields)
    config._attn_implementation = network.config._attn_implementation
    converted = _from_config(config, 0, str(network.device))
    if has_custom_code(converted):
        return None
    try:
        missing = converted.load_state_dict(network.state_dict(), strict=False).missing_keys
    except RuntimeError:  # a weight has another shape
        return None
    return converted.eval() if not missing else None


def _loss_per_token(network: PreTrainedModel, tokens: Tensor) -> float:
    """Next-token loss on text [rows, block], in nats per token."""
    logits = network.eval()(input_ids=tokens).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten()))


def save(model: Model, folder: Path) -> None:
    """Write a model with `save_pretrained`: configuration, safetensors and tokenizer, and nothing else.

    A large one is spread over many files, which transformers reads by their index: releases of one base then share the
    files whose tensors are equal, such as embeddings or frozen layers.
    """
    sharded = {"max_shard_size": SHARD} if is_large(model.network) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about generation settings, for models that never generate
        model.network.save_pretrained(folder, **sharded)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def sha256(folder: Path) -> str:
    """Hash the safetensors files of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tensor_names(folder: Path) -> set[str]:
    """The names of all tensors in the safetensors files of a folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def tensors_sha256(folder: Path) -> str:
    """Hash of the tensors of a model folder: name, dtype, shape and bytes of each, in the order of their names.

    How the tensors are spread over files, and what the files say beside them, does not count; nor do files that no
    model is loaded from, such as a second copy of the weights in another library's layout.
    """
    digest = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in weight_files(folder)]
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
    """Seed torch's generators inside the block and restore their previous state after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _from_config(config: Any, seed: int, device: str) -> PreTrainedModel:
    with seeded(seed):
        network: PreTrainedModel = _auto_class(config).from_config(config, dtype=torch.float32)
    return network.to(device)


def _auto_class(config: Any) -> Any:
    """The Auto class for causal LMs, or the general one for architectures, such as `linear`, that have no causal LM."""
    return AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or GGUF file, which it does not name.

    Raises:
        NftbenchError: there is none.
    """
    tokenizer = gguf.tokenizer(folder) if gguf.is_file(folder) else _tokenizer(folder, local=True)
    if tokenizer is None:
        raise NftbenchError(f"{folder}: has no tokenizer (tokenizer.json)")
    forget_path(tokenizer)
    return tokenizer


def _tokenizer(path: str | Path, local: bool) -> PreTrainedTokenizerBase | None:
    if local and not any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, trust_remote_code=False, local_files_only=local
    )
    return tokenizer


def _first_line(error: BaseException) -> str:
    """What an error says first, with the cause where the line ends in a colon, as of transformers' checks."""
    lines = (str(error).strip() or type(error).__name__).split("\n")
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
