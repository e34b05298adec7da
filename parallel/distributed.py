"""Start-up of one process among many. On a single process it does nothing."""

import os
from dataclasses import dataclass

import jax


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where this process stands among the processes of one run; all empty means "find out from the environment".

    Attributes:
        coordinator: `host:port` of process 0.
        processes: how many processes there are.
        process: number of this one, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def expected_processes() -> int:
    """How many processes the environment says this run has (Slurm, Open MPI, a TPU pod slice), 1 if it says nothing."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return max(1, len([host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]))


def start(cluster: Cluster | None = None) -> None:
    """Joins the other processes of this run, before any device is touched; does nothing where there are none.

    Raises:
        ValueError: if only some of the explicit settings are given.
    """
    cluster = cluster or Cluster()
    given = [cluster.coordinator, cluster.processes, cluster.process]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise ValueError("a cluster needs coordinator, processes and process together, or none to detect them")
        if cluster.processes > 1:
            jax.distributed.initialize(cluster.coordinator, cluster.processes, cluster.process)
    elif expected_processes() > 1:
        jax.distributed.initialize()


def is_lead() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0
