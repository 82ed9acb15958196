"""A Ray cluster of three nodes on this machine, for tests: a head that runs no trial, and two nodes with a CPU each.

It is a process of its own, so that it disturbs no other Ray. It prints the head's address, and takes commands:
`remove PID` ends the node that the worker PID belongs to at once, `end` (or the end of its input) all.
"""

import contextlib
import sys
import tempfile

import psutil
from ray.cluster_utils import Cluster

# A node is dead after some seconds of silence, which by default are ten times as many.
QUICK = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dux", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "_system_config": QUICK}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=1, num_gpus=gpus, temp_dir=folder) for gpus in (1, 0)]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.startswith("remove"):
                raylet = psutil.Process(int(line.split()[1])).ppid()
                node = next(n for n in nodes if raylet in {info.process.pid for info in n.all_processes["raylet"]})
                cluster.remove_node(node, allow_graceful=False)
                print("removed", flush=True)
            else:
                break
        with contextlib.suppress(Exception):
            cluster.shutdown()


if __name__ == "__main__":
    main()
