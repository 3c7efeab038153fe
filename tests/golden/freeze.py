"""Write today's digest of each of nftbench's plugins beside the hash that it had in 0.1.

    python -P tests/golden/freeze.py

To be run once, when the last edit to a plugin before the release that changes the keys is made: it declares that each
plugin computes what it computed at commit 1b316ec. From then on a plugin whose code is edited has no older key.
"""

from __future__ import annotations

import json
from typing import cast

from nftbench.planning import older_keys, registry
from nftbench.planning.keys import TODAY
from nftbench.planning.plugin_sources import source_digest


def main() -> None:
    content = json.loads(older_keys.FROZEN.read_text(encoding="utf-8"))
    content["versions"] = TODAY.versions
    for place, hashes in content["plugins"].items():
        kind, name = place.split("/")
        hashes["today"] = source_digest(registry.find(cast(registry.Kind, kind), name))
    older_keys.FROZEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
