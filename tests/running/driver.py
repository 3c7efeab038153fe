"""A run of a tiny suite by an executor, as a process of its own: `driver.py '{"results": …, "cache": …}'`.

It prints a line for each event. `tests/running/driven.py` starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nftbench.cli import workers as processes
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.planning.shards import Shard, share
from nftbench.records.store import Store
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.executors.protocol import Executor
from nftbench.running.executors.ray import RayExecutor
from nftbench.running.executors.slurm import Settings, SlurmExecutor
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite

MEMORY = 3e8


def executor(given: dict[str, Any], workspace: Workspace) -> Executor:
    kind, workers = given["executor"], given["workers"]
    if kind == "ray":
        return RayExecutor(workspace, given.get("address"), workers, MEMORY)
    if kind == "slurm":
        return SlurmExecutor(workspace, Settings(), None, MEMORY)
    if workers > 1:
        processes.start_server()
    return LocalExecutor(workspace, workers)


def main() -> None:
    given = json.loads(sys.argv[1])
    for path in given["plugins"]:
        registry.add_file(path)
    store = Store(Path(given["results"]), Path(given["cache"]), given["expiry"])
    with registry.importing_added():
        whole = plan(tiny_suite(**given["changes"]))
    workspace = Workspace(whole, store)
    part = share(whole, Shard.parse(given["shard"])) if given["shard"] else whole
    print("ready", flush=True)
    cluster = nodes = None
    if given["nodes"]:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(given["nodes"])]
        given["address"] = cluster.address
    with store.together():
        for event in steps.run(workspace, part.jobs(), executor(given, workspace)):
            print(event.kind, event.stage, len(event.records), flush=True)
            if nodes and cluster is not None and (event.kind, event.stage) == ("started", "attack"):
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                nodes = None
                print("killed a node", flush=True)
    if cluster is not None:
        cluster.shutdown()


if __name__ == "__main__":
    main()
