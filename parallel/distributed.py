"""Start-up of one process among many, and how they end together. On a single process all of it does nothing.

Who a process is among the others is told by three environment variables (`Cluster.environment`), or detected: Slurm's
`srun`, Open MPI, TPU slices on Kubernetes (GKE), Cloud TPU machines. What is found is passed to JAX in full, so that
nothing is detected twice, and said in one line.

How the processes of a run end, whatever happens to one of them:

- one that is killed is missed by the others after 30 s without a heartbeat, and they abort within a minute;
- one that fails leaves at once (`leave`) and is missed likewise: it does not wait for others that wait for it;
- one that is asked to stop (SIGTERM) tells the others, and all stop at the same point (`asked_to_stop`).

Launchers that can see the processes (`scaling launch local`, `srun --kill-on-bad-exit`) are quicker than that. Whether
a run is then started again is told by the statuses that they end with (`parallel.ending`).
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parallel.ending import AGAIN, status_of

HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as dead."""
SHUTDOWN_SECONDS = 60
"""Longest wait of a process that has ended well for the others to end."""
START_SECONDS = 300.0
"""Longest wait for the other processes at the start: machines of one run may start minutes apart."""


class Source(Enum):
    """Where it was learnt who a process is."""

    EXPLICIT = "as told"
    SLURM = "Slurm"
    OPEN_MPI = "Open MPI"
    GKE = "TPU slice on Kubernetes"
    TPU_VM = "Cloud TPU"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where this process stands among the processes of one run.

    Attributes:
        coordinator: `host:port` of process 0, which all others can reach.
        processes: how many processes there are.
        process: number of this one, from 0.
        source: where that was learnt.
        local_devices: numbers of this machine's GPUs that are this process's; None for all.

    Raises:
        ValueError: if the numbers do not fit each other, or the coordinator has no port.
    """

    coordinator: str
    processes: int
    process: int
    source: Source = Source.EXPLICIT
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.processes:
            raise ValueError(f"there is no process {self.process} of {self.processes}: they count from 0")
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and int(port) < 2**16):
            raise ValueError(f"a coordinator is written host:port, not {self.coordinator!r}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def environment(self) -> dict[str, str]:
        """The variables that tell a process all this."""
        values = (self.coordinator, str(self.processes), str(self.process))
        return dict(zip(_VARIABLES, values, strict=True))


_VARIABLES = ("SCALING_COORDINATOR", "SCALING_PROCESSES", "SCALING_PROCESS")


# ---------------------------------------------------------------------------------------------------------------------
# Who is this process?


def detect(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """Where this process stands, by what its environment says; None if it is alone.

    Args:
        environment: variables; this process's own if None.

    Raises:
        ValueError: if they say only a part of it, or what cannot be.
    """
    environment = os.environ if environment is None else environment
    for ask in (_told, _slurm, _open_mpi, _gke, _tpu_vm):
        if (cluster := ask(environment)) is not None:
            return cluster if cluster.processes > 1 else None
    return None


def _told(environment: Mapping[str, str]) -> Cluster | None:
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if len(missing) == len(_VARIABLES):
        return None
    if missing:
        raise ValueError(f"{' and '.join(missing)} not set; give {', '.join(_VARIABLES)} together, or none of them")
    coordinator, *_ = (environment[name] for name in _VARIABLES)
    processes, process = (_number(environment, name) for name in _VARIABLES[1:])
    return Cluster(coordinator=coordinator, processes=processes, process=process)


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of `srun`; a batch script, or a shell within an allocation, is not one."""
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_STEP_NODELIST" not in environment:
        return None
    step = [_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    # The first of "gpu7", "gpu[001-004,9]", "rack[1-2]n[3-4],login": every bracket's first number.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", environment["SLURM_STEP_NODELIST"]).group()
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
    # Above what Linux gives to outgoing connections, and another for another step of the same job.
    port = 61440 + (step[0] * 31 + step[1]) % 4096
    shared = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")).group()
    return Cluster(
        coordinator=f"{host}:{environment.get('JAX_COORDINATOR_PORT', port)}",
        processes=_number(environment, "SLURM_STEP_NUM_TASKS"),
        process=_number(environment, "SLURM_PROCID"),
        source=Source.SLURM,
        local_devices=_own_device(environment, "SLURM_LOCALID", int(shared)),
    )


def _open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    processes, process = (_number(environment, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    # mpirun's own address, as "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"; process 0 runs beside it.
    uri = re.match(r"(\d+)\.\d+;tcp6?://\[?([^,;\]:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if uri is None and processes > 1:
        raise ValueError(
            f"process {process} of {processes} (Open MPI): this version does not say where process 0 is; set "
            "SCALING_COORDINATOR=host:port, SCALING_PROCESSES=$OMPI_COMM_WORLD_SIZE and "
            "SCALING_PROCESS=$OMPI_COMM_WORLD_RANK"
        )
    job, host = (int(uri[1]), uri[2]) if uri else (0, "localhost")
    return Cluster(
        coordinator=f"{host}:{environment.get('JAX_COORDINATOR_PORT', 61440 + job // 4096 % 4096)}",
        processes=processes,
        process=process,
        source=Source.OPEN_MPI,
        local_devices=_own_device(
            environment, "OMPI_COMM_WORLD_LOCAL_RANK", int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
        ),
    )


def _own_device(environment: Mapping[str, str], rank: str, sharing: int) -> tuple[int, ...] | None:
    """The GPU of a process that shares its machine, unless it is shown no other."""
    shown = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return None if sharing == 1 or (len(shown) == 1 and shown[0]) else (_number(environment, rank),)


def _gke(environment: Mapping[str, str]) -> Cluster | None:
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if not hosts or "TPU_WORKER_ID" not in environment:
        return None
    return _slices(environment, hosts, _number(environment, "TPU_WORKER_ID"), Source.GKE)


def _tpu_vm(environment: Mapping[str, str]) -> Cluster | None:
    """A Cloud TPU machine, which learns of the others from its metadata server."""
    if "TPU_SKIP_MDS_QUERY" in environment or "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
        return None
    if "GCE_METADATA_HOST" not in environment and not any(
        any(Path("/dev").glob(pattern)) for pattern in ("accel[0-9]*", "vfio/[0-9]*")
    ):
        return None
    server = environment.get("GCE_METADATA_HOST", "metadata.google.internal")
    number, endpoints = (_metadata(server, key) for key in ("agent-worker-number", "worker-network-endpoints"))
    if number is None or endpoints is None:
        return None
    # An endpoint is an address, or name:number:address.
    hosts = [endpoint.rpartition(":")[2] for endpoint in endpoints.split(",")]
    pairs = re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?\s*$", _metadata(server, "tpu-env") or "", re.MULTILINE)
    return _slices({**dict(pairs), **environment}, hosts, int(number), Source.TPU_VM)


def _slices(environment: Mapping[str, str], hosts: list[str], worker: int, source: Source) -> Cluster:
    """Machine `worker` of the hosts of one slice, of one slice or several."""
    count = _number(environment, "MEGASCALE_NUM_SLICES", usual=1)
    number = _number(environment, "MEGASCALE_SLICE_ID", usual=0)
    host = environment.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0] or hosts[0]
    return Cluster(
        coordinator=f"{host}:{environment.get('JAX_COORDINATOR_PORT', 8482)}",
        processes=count * len(hosts),
        process=number * len(hosts) + worker,
        source=source,
    )


def _metadata(server: str, key: str) -> str | None:
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, OSError):
        return None


def _number(environment: Mapping[str, str], name: str, usual: int | None = None) -> int:
    value = environment.get(name, "" if usual is None else str(usual))
    if not value.isdecimal():
        raise ValueError(f"{name} is {value!r}, and should be a whole number" if value else f"{name} is not set")
    return int(value)


# ---------------------------------------------------------------------------------------------------------------------
# Together from start to end


def start(cluster: Cluster | None = None, *, patience: float = START_SECONDS) -> bool:
    """Joins the other processes of this run, before any device is touched; does nothing where there are none.

    Each process then says in one line on standard error who it is. Where the coordinator answers but others do not come
    in time, it says so and ends: nothing could go on.

    Args:
        cluster: where this process stands; detected if None.
        patience: seconds to wait for the others.

    Returns:
        Whether there are others.

    Raises:
        ValueError: if the environment says only a part of what is needed.
        ConnectionError: if the coordinator does not answer in time.
    """
    cluster = cluster or detect()
    if cluster is None or cluster.processes == 1:
        return False
    who = f"process {cluster.process} of {cluster.processes} ({cluster.source.value}) on {socket.gethostname()}"
    deadline = time.monotonic() + patience
    if cluster.process > 0:
        _await_coordinator(cluster, who, patience)
    host, port = cluster.address
    with _or_end(deadline, f"{who}: not all processes came within {patience:.0f} s"):
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=round(patience) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            coordinator_bind_address=f"{host}:{port}" if host in ("127.0.0.1", "localhost") else None,
        )
        kind = jax.local_devices()[0].device_kind  # which tells all processes of each other's devices
    sys.excepthook = _say_and_leave
    share = f"{jax.local_device_count()} of {jax.device_count()} {kind} devices"
    print(f"{who}: {share}, coordinator {cluster.coordinator}", file=sys.stderr, flush=True)
    return True


@contextlib.contextmanager
def _or_end(deadline: float, message: str) -> Iterator[None]:
    """Ends the process with a message unless what is within is done by then: JAX would abort it, with a stack dump."""

    def end() -> None:
        print(message, file=sys.stderr, flush=True)
        os._exit(AGAIN)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _await_coordinator(cluster: Cluster, who: str, patience: float) -> None:
    """Waits until process 0 listens."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(cluster.address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"{who}: the coordinator {cluster.coordinator} did not answer within {patience:.0f} s "
                    f"({error.strerror or error}); does process 0 run there, and can this machine reach it?"
                ) from None
        time.sleep(0.2)


def is_lead() -> bool:
    """Whether this is the process that writes what is written once; asked of one that is alone, touches no device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def synchronize(name: str) -> None:
    """Waits until all processes are here; `name` says where, and must be the same in all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def lead_first(name: str) -> Iterator[None]:
    """Within it the lead is first, and the others follow when it is through: they find done what is done once.

    Raises:
        RuntimeError, ConnectionError: in the others, where the lead was stopped by an error, with its words; the latter
            if it may pass, as `parallel.ending` has it.
    """
    if not is_lead():
        if told := from_lead(None):
            reason, status = told
            raise (ConnectionError if status == AGAIN else RuntimeError)(f"process 0 stopped at {name}: {reason}")
        yield
        return
    try:
        yield
    except Exception as error:
        from_lead([str(error) or type(error).__name__, status_of(error)])
        raise
    from_lead(None)


def from_lead(value: Any) -> Any:
    """The lead's value, in every process: for what each could see differently, such as which files there are.

    Args:
        value: anything that JSON can hold; every process must call, and only the lead's counts. One that is alone
            touches no device.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(text))))
    text = broadcast_one_to_all(text if is_lead() else np.zeros(size, np.uint8))
    return json.loads(np.asarray(text).tobytes())


def everywhere(mine: bool) -> bool:
    """Whether something holds in every process; every process must ask."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.all(process_allgather(np.asarray(mine))))


def asked_to_stop() -> bool:
    """Whether any process of the run was asked to stop (SIGTERM); every process must ask equally often.

    All are told so the same time they ask, once.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_asked))


_asked = itertools.count()


def leave(status: int) -> None:
    """Ends this process at once if it is one of several; the others, who may wait for it, will then miss it.

    Call it after an error that was caught and told; an error that nothing catches does the same by itself.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_lead():  # JAX aborts who finds its coordinator gone, with a dump: those who leave as well go before it
            time.sleep(1)
        os._exit(status)


def _say_and_leave(*error: Any) -> None:
    sys.__excepthook__(*error)
    leave(status_of(error[1]))
