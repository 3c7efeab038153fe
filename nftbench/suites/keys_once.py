"""Reads YAML as its standard says: a section has each key once."""

from __future__ import annotations

from typing import Any

import yaml


class KeysOnce(yaml.SafeLoader):
    """Refuses a key that a section has twice. The package yaml would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
