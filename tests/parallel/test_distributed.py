"""Start-up: who a process is, by what each kind of cluster says; two real processes find each other, or say why not."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from parallel.distributed import Cluster, Source, asked_to_stop, detect, is_lead, lead_first, leave, start, synchronize
from parallel.ending import AGAIN, FAILED, worth_restarting

PREAMBLE = """
import json, sys, time
from parallel.distributed import *
process, address = int(sys.argv[1]), sys.argv[2]
"""

JOIN = """
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

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[007-010]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.run,w-1.run", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "s-0-0.run:8080"}
TOLD = {"SCALING_COORDINATOR": "10.0.0.7:99", "SCALING_PROCESSES": "3", "SCALING_PROCESS": "2"}


def found(environment):
    cluster = detect(environment)
    return cluster and (cluster.address[0], cluster.processes, cluster.process, cluster.source, cluster.local_devices)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TOLD, ("10.0.0.7", 3, 2, Source.EXPLICIT, None)),
        (TOLD | SLURM, ("10.0.0.7", 3, 2, Source.EXPLICIT, None)),
        (SLURM, ("gpu007", 8, 5, Source.SLURM, (1,))),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, ("gpu007", 8, 5, Source.SLURM, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, ("gpu007", 8, 5, Source.SLURM, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, ("gpu007", 8, 5, Source.SLURM, (1,))),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script
        (MPI, ("10.96.0.1", 4, 3, Source.OPEN_MPI, (1,))),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (GKE, ("w-0.run", 2, 1, Source.GKE, None)),
        (GKE | SLICES, ("s-0-0.run", 6, 5, Source.GKE, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ],
)
def test_who_a_process_is(environment, expected):
    assert found(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("a,b", "a"), ("n[1-4]", "n1"), ("gpu[001,007-9],x", "gpu001"), ("r[1-2]n[3-4],l", "r1n3")],
)
def test_first_node_of_a_list(nodes, first):
    assert found(SLURM | {"SLURM_STEP_NODELIST": nodes})[0] == first


def test_ports_differ_between_steps_and_can_be_chosen():
    ports = [detect(SLURM | {"SLURM_STEP_ID": str(step)}).address[1] for step in range(3)]
    assert len(set(ports)) == 3
    assert all(61440 <= port < 65536 for port in ports)
    assert detect(SLURM | {"JAX_COORDINATOR_PORT": "4321"}).address[1] == 4321


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SCALING_PROCESS": "1"}, "SCALING_COORDINATOR and SCALING_PROCESSES not set; give"),
        (TOLD | {"SCALING_PROCESS": "3"}, "no process 3 of 3: they count from 0"),
        (TOLD | {"SCALING_PROCESSES": "two"}, "SCALING_PROCESSES is 'two'"),
        (TOLD | {"SCALING_COORDINATOR": "10.0.0.7"}, "host:port, not '10.0.0.7'"),
        ({name: MPI[name] for name in MPI if "uri" not in name}, "process 3 of 4 .* set SCALING_COORDINATOR=host:port"),
        ({name: SLURM[name] for name in SLURM if name != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
    ],
)
def test_half_a_story_is_an_error(environment, said):
    with pytest.raises(ValueError, match=said):
        detect(environment)


def test_what_is_told_is_understood():
    cluster = Cluster(coordinator="[::1]:7", processes=9, process=4)
    assert detect(cluster.environment()) == cluster
    assert cluster.address == ("::1", 7)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_cloud_tpu_machine_asks_its_metadata_server(slices):
    """The second machine of two a slice, by a server that answers as Google's does."""
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.1.0.5,unknown:unknown:10.1.0.6",
        "tpu-env": "ZONE: 'z'\n"
        + (f"MEGASCALE_NUM_SLICES: '{slices}'\nMEGASCALE_SLICE_ID: '1'\n" if slices > 1 else "")
        + ("MEGASCALE_COORDINATOR_ADDRESS: '10.1.0.1:8080'\n" if slices > 1 else ""),
    }

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2])
            self.send_response(200 if value and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}"}
        cluster = found(environment)
        without = found(environment | {"TPU_SKIP_MDS_QUERY": "1"}), found(environment | {"JAX_PLATFORMS": "cpu"})
        server.shutdown()
    expected = ("10.1.0.5", 2, 1) if slices == 1 else ("10.1.0.1", 4, 3)
    assert cluster == (*expected, Source.TPU_VM, None)
    assert without == (None, None)


def test_a_lone_process_joins_nobody_and_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("a lone process joins nobody"))
    for name in [*SLURM, *MPI, *GKE, *TOLD]:
        monkeypatch.delenv(name, raising=False)
    start()
    start(Cluster(coordinator="localhost:1", processes=1, process=0))
    assert is_lead()
    with lead_first("nothing"):
        synchronize("nobody")
    assert not asked_to_stop()
    leave(1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*programs, timeout=120):
    """What each process printed, what it said on standard error, and its status, with the seconds it all took."""
    address, began = f"127.0.0.1:{free_port()}", time.monotonic()
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": root}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + program, str(process), address],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process, program in enumerate(programs)
    ]  # fmt: skip
    try:
        ends = [worker.communicate(timeout=timeout) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(*end, worker.returncode) for end, worker in zip(ends, workers, strict=True)], time.monotonic() - began


def test_two_processes_join():
    ends, _ = run(JOIN, JOIN)
    assert [status for *_, status in ends] == [0, 0], ends
    reports = [json.loads(out.splitlines()[-1]) for out, *_ in ends]
    assert reports == [[2, 0, 4, True, 6.0], [2, 1, 4, False, 6.0]]
    for process, (_, error, _) in enumerate(ends):
        (line,) = [line for line in error.splitlines() if line.startswith("process")]
        assert line.startswith(f"process {process} of 2 (as told) on {socket.gethostname()}: 2 of 4 cpu devices")


def test_a_coordinator_that_does_not_answer():
    program = f"start(Cluster(coordinator='127.0.0.1:{free_port()}', processes=2, process=1), patience=1.0)"
    ((_, error, status),), seconds = run(program)
    assert status == 1
    assert error.splitlines()[-1].startswith("ConnectionError: process 1 of 2 (as told) on ")
    assert "did not answer within 1 s (Connection refused)" in error
    assert seconds < 15


@pytest.mark.slow
def test_others_that_do_not_come():
    ((_, error, status),), seconds = run("start(Cluster(coordinator=address, processes=2, process=0), patience=3.0)")
    assert status == AGAIN
    assert "process 0 of 2 (as told)" in error.splitlines()[-1]
    assert "not all processes came within 3 s" in error.splitlines()[-1]
    assert seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise RuntimeError('of its own')", "leave(1)"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_ends_the_other_within_a_minute(end, victim):
    """The survivor waits for it in a collective; without a launcher nobody but the heartbeat tells."""
    programs = [JOIN + "\nsynchronize('never')"] * 2
    programs[victim] = JOIN + f"\nimport os\n{end}"
    ends, seconds = run(*programs)
    _, error, status = ends[1 - victim]
    assert worth_restarting(128 - status if status < 0 else status), "it is not its fault"
    assert ends[victim][2] == (-9 if "kill" in end else FAILED)
    assert seconds < 60
    assert error.strip(), "it said nothing"


@pytest.mark.slow
def test_what_stops_the_lead_at_its_own_work_the_others_say_too():
    """In a line each: JAX would abort those who wait for it, with a dump."""
    ends, _ = run(*[JOIN + "\nwith lead_first('rows'):\n    if is_lead(): raise ValueError('no such file')"] * 2)
    (_, lead, _), (_, other, _) = ends
    assert [status for *_, status in ends] == [1, 1]
    assert lead.splitlines()[-1] == "ValueError: no such file"
    assert other.splitlines()[-1] == "RuntimeError: process 0 stopped at rows: no such file"


@pytest.mark.slow
def test_what_may_pass_at_the_lead_may_pass_for_all():
    ends, _ = run(*[JOIN + "\nwith lead_first('rows'):\n    if is_lead(): raise TimeoutError('no answer')"] * 2)
    assert [status for *_, status in ends] == [AGAIN, AGAIN]
    assert ends[1][1].splitlines()[-1] == "ConnectionError: process 0 stopped at rows: no answer"
