"""What the families of altered decoders share: their classes, and how transformers learns of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """The classes that stand in the place of one standard architecture's."""

    config: type[Any]
    model: type[Any]
    causal: type[Any]


class OwnDecoder:
    """Mixin for a family's causal LM. It puts the altered decoder in the place of the standard one."""

    decoder: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, self.decoder(config))  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


def register(families: Iterable[Family]) -> None:
    """Register families with transformers' Auto classes."""
    for family in families:
        AutoConfig.register(family.config.model_type, family.config, exist_ok=True)
        AutoModel.register(family.config, family.model, exist_ok=True)
        AutoModelForCausalLM.register(family.config, family.causal, exist_ok=True)


def settings_of(network: PreTrainedModel, config: type[Any], **changes: Any) -> Any:
    """A configuration of another class with the settings of `network`, some of them changed."""
    replaced = {"model_type", "architectures", "transformers_version"}
    settings = {name: value for name, value in network.config.to_dict().items() if name not in replaced}
    found = config.from_dict({**settings, **changes})
    found._attn_implementation = network.config._attn_implementation
    return found
