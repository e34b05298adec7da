"""Start-up: alone it does nothing; two real processes find each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from parallel.distributed import Cluster, expected_processes, is_lead, start

WORKER = """
import json, sys
from parallel.distributed import Cluster, is_lead, start
process, address = int(sys.argv[1]), sys.argv[2]
start(Cluster(coordinator=address, processes=2, process=process))
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from parallel.mesh import device_mesh
mesh = device_mesh("data=-1")
rows = NamedSharding(mesh, PartitionSpec("data"))
mine = np.full((2,), 1.0 + process, np.float32)
whole = jax.make_array_from_process_local_data(rows, mine)
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(whole)
print(json.dumps([jax.process_count(), jax.process_index(), jax.device_count(), is_lead(), float(total)]))
"""


@pytest.fixture
def alone(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("a lone process joins nobody"))
    return monkeypatch


def test_a_lone_process_joins_nobody(alone):
    start()
    start(Cluster(coordinator="localhost:1", processes=1, process=0))
    alone.setenv("SLURM_STEP_NUM_TASKS", "1")
    start()
    assert is_lead()


def test_incomplete_settings_are_an_error(alone):
    with pytest.raises(ValueError, match="coordinator, processes and process together"):
        start(Cluster(processes=2))


def test_the_environment_says_how_many(alone):
    assert expected_processes() == 1
    alone.setenv("TPU_WORKER_HOSTNAMES", "a,b,c")
    assert expected_processes() == 3
    alone.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert expected_processes() == 4
    calls = []
    alone.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    start()
    assert calls == [()]


def test_two_processes_join():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": root}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), address],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        ends = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], ends
    reports = [json.loads(out.splitlines()[-1]) for out, _ in ends]
    assert reports == [[2, 0, 4, True, 6.0], [2, 1, 4, False, 6.0]]
