"""GGUF files, in which llama.cpp keeps quantized models. They are read as ordinary float32 networks.

The architectures and kinds of quantization are those that transformers reads with the package `gguf`. Reading a header
takes 18 seconds where the vocabulary has 262,144 words, as that of Gemma 3. So a process reads each header once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from nftbench.errors import NftbenchError, one_line

SUFFIX = ".gguf"
NAMED = ("general.architecture", "general.type", "split.count")
"""The fields of a header that are read by these names."""
PIECE = 2**22
"""Bytes of a tensor that are read at once."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about its model before any weight is read."""

    architecture: str
    parameters: int
    words: int
    """The size of the tokenizer's vocabulary."""
    window: int
    """The most tokens of one input."""


def is_file(path: str | Path) -> bool:
    return Path(path).suffix == SUFFIX and Path(path).is_file()


def header(path: Path) -> Header:
    """Read the header.

    Raises:
        NftbenchError: the package gguf is missing, the file is damaged or a part of a model, it holds no tokenizer or
            one with more words than the model embeds, or transformers cannot read its architecture or its quantization.
    """
    return _header(path, _state(path))


@functools.cache
def _header(path: Path, state: tuple[int, int]) -> Header:
    gguf = _package(path)
    try:
        file = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in file.fields.items() if name in NAMED}
        architecture, kind = str(fields["general.architecture"]), fields.get("general.type", "model")
        window = file.fields.get(f"{architecture}.context_length")
        words = len(file.fields["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in file.fields else 0
        shapes = {tensor.name: tensor.shape.tolist() for tensor in file.tensors}
        kinds = {tensor.tensor_type for tensor in file.tensors}
        parameters = sum(int(tensor.n_elements) for tensor in file.tensors)
    except Exception as error:  # a damaged file raises errors of many classes
        raise NftbenchError(
            f"{path}: is no GGUF file that can be read, or a part of one; download it again ({one_line(str(error))})"
        ) from error
    if kind != "model":
        raise NftbenchError(f"{path}: holds a part of a model ({kind}) and no model; give the file of the model")
    if fields.get("split.count", 1) > 1:
        raise NftbenchError(f"{path}: is one of {fields['split.count']} parts; join them with llama-gguf-split --merge")
    if architecture not in GGUF_CONFIG_MAPPING:
        raise NftbenchError(
            f"{path}: transformers reads no GGUF of the architecture {architecture!r}; give a folder with safetensors"
        )
    plain = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
    unknown = sorted(kind.name for kind in kinds - plain if kind not in gguf.quants._type_traits)
    if unknown:
        raise NftbenchError(
            f"{path}: the package gguf cannot read the quantization {', '.join(unknown)}; take a file of another one, "
            "such as Q8_0"
        )
    if not shapes:
        raise NftbenchError(f"{path}: holds no weights, only a tokenizer; give the file of the model")
    if not words:
        raise NftbenchError(f"{path}: holds no tokenizer; give a file that does, or a folder with safetensors")
    if window is None:
        raise NftbenchError(f"{path}: does not say how many tokens its model reads at once")
    embedded = shapes.get("token_embd.weight", [0, words])[1]  # its dimensions are in the order width, words
    if embedded < words:
        raise NftbenchError(f"{path}: its tokenizer has {words} words, and its model embeds {embedded}")
    return Header(architecture, parameters, words, int(window.contents()))


def check_finite(path: Path) -> None:
    """Refuse weights that are no numbers. Tensors are read one by one, in pieces.

    Raises:
        NftbenchError: names a tensor with such weights.
    """
    gguf = _package(path)
    for tensor in gguf.GGUFReader(path).tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, PIECE // rows.shape[1])
        for start in range(0, len(rows), step):
            with np.errstate(all="ignore"):  # numpy warns of each infinite scale
                values = gguf.dequantize(rows[start : start + step], tensor.tensor_type)
            if not np.isfinite(values).all():
                raise NftbenchError(f"{path}: holds weights that are not finite: {tensor.name}")


def config(path: Path) -> PreTrainedConfig:
    """The configuration that the file's header describes.

    Raises:
        NftbenchError: see `header`; or transformers cannot read it.
    """
    header(path)
    return copy.deepcopy(_config(path, _state(path)))  # callers change its fields


@functools.cache
def _config(path: Path, state: tuple[int, int]) -> PreTrainedConfig:
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the errors of transformers and gguf share no base class
        raise NftbenchError(f"{path}: cannot be read: {one_line(str(error))}") from error
    return found


def tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer alone.

    Raises:
        NftbenchError: transformers cannot read it.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the errors of transformers and gguf share no base class
        raise NftbenchError(f"{path}: its tokenizer cannot be read: {one_line(str(error))}") from error
    found.init_kwargs.pop("gguf_file", None)
    return found


def load(path: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the network and the tokenizer. On the device `meta` the network has no weights.

    Raises:
        NftbenchError: see `header`; or transformers cannot read the file.
    """
    settings = config(path)
    try:
        if device == "meta":
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(settings), tokenizer(path)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            network = AutoModelForCausalLM.from_pretrained(
                path.parent,
                config=settings,
                dtype=torch.float32,
                gguf_file=path.name,
                local_files_only=True,
                trust_remote_code=False,
            )
    except NftbenchError:
        raise
    except Exception as error:  # the errors of transformers and gguf share no base class
        raise NftbenchError(f"{path}: cannot be read: {one_line(str(error))}") from error
    _forget_quantization(network)
    return network, tokenizer(path)


def _state(path: Path) -> tuple[int, int]:
    """What tells a file from an earlier one of its name: its size in bytes, and the time of its last change in ns."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _forget_quantization(network: PreTrainedModel) -> None:
    """Remove the marks of the file's quantization: the weights are plain now, and are to be saved as such."""
    for owner, name in ((network, "hf_quantizer"), (network.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    for mark in ("is_quantized", "quantization_method"):
        vars(network).pop(mark, None)


def _package(path: Path):  # type: ignore[no-untyped-def]
    try:
        import gguf
    except ImportError as error:
        raise NftbenchError(f"{path}: reading it needs the package gguf: pip install gguf") from error
    return gguf
