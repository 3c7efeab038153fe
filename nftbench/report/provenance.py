"""The provenance of a leaderboard in words: when, where and with what its records were made."""

from __future__ import annotations

from collections.abc import Mapping

from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.provenance import NOT_RECORDED, short

ISOLATION = {
    "landlock": "landlock: the kernel kept plugins from secrets and from the cache",
    "process": "process: nothing but a process of their own kept plugins from secrets",
}
SALT = {
    "drawn": "drawn at random for this run; nftbench pack names it in manifest.json, for --salt",
    "public": "public before the run",
}


def facts(board: Leaderboard) -> dict[str, str]:
    """What is known of the records' making, by name; empty where there are no records."""
    made, commits = board.origin.provenance, board.origin.provenance.commits
    counted = [f"{short(one)} ({count} record{'s' * (count != 1)})" for one, count in commits.items()]
    days = " to ".join(dict.fromkeys(time[:10] for time in (made.first, made.last) if time))
    found = {
        "written": f"{days} (UTC)" if days else "",
        "hardware": "; ".join(map(_machine, made.hardware)),
        "versions": ", ".join(f"{name} {' and '.join(made.versions[name])}" for name in _libraries(made.versions)),
        "commit": ", ".join(counted if len(commits) > 1 else map(short, commits)),
        "isolation": "; ".join(ISOLATION.get(one, one) for one in made.isolation),
        "salt": SALT[made.salt] if made.salt and commits else "",
    }
    return {name: fact for name, fact in found.items() if fact}


def _libraries(versions: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What is measured with comes first."""
    return sorted(versions, key=lambda name: (name != "nftbench", name))


def _machine(hardware: Mapping[str, str | int]) -> str:
    """`NVIDIA H200, CUDA 13.0, AMD EPYC (AuthenticAMD, family 25, model 17, stepping 1), AVX512, 16 threads`."""
    numbers = [f"{name} {hardware[name]}" for name in ("family", "model", "stepping") if name in hardware]
    kind = ", ".join([*([str(hardware["vendor"])] if "vendor" in hardware else []), *numbers])
    name = hardware.get("processor", "")
    threads = hardware.get("threads")
    parts = [
        hardware.get("gpu"),
        f"CUDA {hardware['cuda']}" if "cuda" in hardware else None,
        f"{name} ({kind})" if kind and name else name or kind,
        hardware.get("cpu_capability"),
        f"{threads} thread{'s' * (threads != 1)}" if threads else None,
    ]
    return ", ".join(str(part) for part in parts if part) or NOT_RECORDED
