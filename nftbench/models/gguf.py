"""GGUF files, in which llama.cpp keeps quantized models. They are read as ordinary float32 networks.

The architectures and kinds of quantization are those that transformers reads with the package `gguf`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

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
        NftbenchError: the package gguf is missing, the file is damaged, it holds no tokenizer, or transformers cannot
            read its architecture or its quantization.
    """
    gguf = _package(path)
    try:
        file = gguf.GGUFReader(path)
        fields = file.fields
        architecture = str(fields["general.architecture"].contents())
        words = len(fields["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in fields else 0
        kinds = {tensor.tensor_type for tensor in file.tensors}
        parameters = sum(int(tensor.n_elements) for tensor in file.tensors)
        window = int(fields[f"{architecture}.context_length"].contents())
    except Exception as error:  # a damaged file raises errors of many classes
        raise NftbenchError(f"{path}: is no GGUF file that can be read: {one_line(str(error))}") from error
    if architecture not in GGUF_CONFIG_MAPPING:
        raise NftbenchError(f"{path}: transformers reads no GGUF of the architecture {architecture!r}")
    plain = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
    unknown = sorted(kind.name for kind in kinds - plain if kind not in gguf.quants._type_traits)
    if unknown:
        raise NftbenchError(f"{path}: the package gguf cannot read the quantization {', '.join(unknown)}")
    if not words:
        raise NftbenchError(f"{path}: holds no tokenizer")
    return Header(architecture, parameters, words, window)


def config(path: Path) -> PreTrainedConfig:
    """The configuration that the file's header describes.

    Raises:
        NftbenchError: see `header`; or transformers cannot read it.
    """
    header(path)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the errors of transformers and gguf share no base class
        raise NftbenchError(f"{path}: cannot be read: {one_line(str(error))}") from error
    return found


def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the network and the tokenizer.

    Raises:
        NftbenchError: see `header`; or transformers cannot read the file.
    """
    settings, places = config(path), {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            network = AutoModelForCausalLM.from_pretrained(path.parent, config=settings, dtype=torch.float32, **places)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **places)
    except Exception as error:  # the errors of transformers and gguf share no base class
        raise NftbenchError(f"{path}: cannot be read: {one_line(str(error))}") from error
    _forget_quantization(network)
    tokenizer.init_kwargs.pop("gguf_file", None)
    return network, tokenizer


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
