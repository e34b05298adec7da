"""`scaling launch`: the same command elsewhere."""

from __future__ import annotations

import difflib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.buckets import kind_and_path
from experiments.launch.tpu import Tier

TRAINS = {"train": "one run", "sweep": "many runs"}
PLACES = ("local", "slurm", "tpu", "gke", "join")


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """What all launchers ask."""

    command: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="-- COMMAND ...")]]
    """After `--`, what is to run: train or sweep with its own options."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show what would be started or submitted, to the letter, and do nothing."""

    def checked(self) -> tuple[str, ...]:
        """The command, after reading its options here, where mistakes cost nothing.

        Raises:
            ValueError: if it is not one that trains, or its folder cannot be written from there.
        """
        from experiments.cli import parse

        if not self.command:
            raise ValueError(f"give what is to run after --: {' or '.join(TRAINS)}, with options of its own")
        name, *options = self.command
        if name not in TRAINS:
            near = difflib.get_close_matches(name, TRAINS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {' and '.join(TRAINS)}"
            raise ValueError(f"after -- stands what is to run, and '{name}' does not train; {hint}")
        self._check(parse(name, options))
        return self.command

    def _check(self, command: Any) -> None:
        """Of the command with its options."""
        named = kind_and_path(command.output)
        if named and named[0] != "gs" and self._together:
            raise ValueError(
                f"-o {command.output}: several processes keep checkpoints in gs://bucket/folder or on a disk that all "
                "of them see"
            )

    @property
    def _together(self) -> bool:
        """Whether it is certain that several processes train one run."""
        return False


@dataclass(frozen=True, kw_only=True)
class _FarLauncher(_Launcher):
    """What launchers ask that ask for machines."""

    def _check(self, command: Any) -> None:
        super()._check(command)
        if command.dry_run:
            raise ValueError("--dry-run after -- would ask for machines that train nothing; it stands before --")


@dataclass(frozen=True, kw_only=True)
class _CloudLauncher(_FarLauncher):
    """What launchers ask whose machines go when the command has ended."""

    def _check(self, command: Any) -> None:
        super()._check(command)
        if not Path(command.output).is_absolute() and "://" not in command.output:
            print(
                f"'-o {command.output}' is on disks that go with the machines; -o gs://bucket/folder stays",
                file=sys.stderr,
            )


@dataclass(frozen=True, kw_only=True)
class LocalCommand(_Launcher):
    """Train one run in several processes on this machine, as on a cluster, with CPU devices.

    Every line of output is preceded by the number of its process. One that fails or is killed ends the others.

        scaling launch local --processes 4 --devices 2 -- train --steps 200 --placement.mesh data=4,fsdp=2
    """

    processes: int = 2
    """Processes."""
    devices: int = 1
    """XLA host devices of each."""

    @property
    def _together(self) -> bool:
        return self.processes > 1

    def __call__(self) -> int:
        """Runs until all processes have ended."""
        from experiments.launch.processes import Local

        command = self.checked()
        if command[0] == "sweep":
            raise ValueError("a sweep keeps this machine's cores busy by itself: scaling sweep --workers N")
        local = Local(processes=self.processes, devices=self.devices)
        if self.dry_run:
            print(local.shown(command))
            return 0
        return local.launch(command)


@dataclass(frozen=True, kw_only=True)
class JoinCommand(_Launcher):
    """Be one process of a run whose other processes are started likewise, where nothing tells them of each other.

    scaling launch join --coordinator 10.0.0.7:4321 --processes 16 --process 3 -- train ...
    """

    coordinator: str
    """host:port on which process 0 is to listen."""
    processes: int
    """Processes of the run."""
    process: int
    """Number of this one, from 0."""

    @property
    def _together(self) -> bool:
        return self.processes > 1

    def __call__(self) -> int:
        """Becomes that process."""
        import os
        import shlex

        from parallel.distributed import Cluster

        command = [sys.executable, "-m", "experiments.cli", *self.checked()]
        told = Cluster(coordinator=self.coordinator, processes=self.processes, process=self.process).environment()
        if self.dry_run:
            print(*(f"{name}={shlex.quote(value)}" for name, value in told.items()), shlex.join(command))
            return 0
        os.execve(sys.executable, command, os.environ | told)


@dataclass(frozen=True, kw_only=True)
class SlurmCommand(_FarLauncher):
    """Submit to Slurm: a run as one job on all its nodes, a sweep as an array whose tasks share its cells.

    Before a job's time is up, or when it is preempted, what it trains is saved and the job queued again; so is one that
    lost a node, another process, the network or storage, but not one that fails of itself.

        scaling launch slurm --nodes 4 --gpus-per-node 8 --time 12:00:00 -- train --placement.mesh fsdp=32
        scaling launch slurm --nodes 4 --array 20 --options=--mem=16G -- sweep --budgets 1e12 4e12
    """

    nodes: int = 1
    """Nodes that a run trains on, or that work at the cells of a sweep at a time."""
    gpus_per_node: int = 0
    """GPUs of each node; a run has a process for each GPU, or one for each node where there are none."""
    cpus_per_task: int | None = None
    """Cores of each process; Slurm's default otherwise."""
    array: int | None = None
    """Array tasks that share the cells of a sweep; as many as nodes otherwise."""
    time: str = ""
    """Limit of a job, as 12:00:00 or 2-00:00:00; a run that meets it is queued again and goes on."""
    partition: str = ""
    """Partition; Slurm's default otherwise."""
    account: str = ""
    """Account; Slurm's default otherwise."""
    notice: int = 120
    """Seconds before the end at which a run is asked to save."""
    restarts: int = 10
    """How often a job is queued again that soon lost another process, the network or storage."""
    name: str = "scaling"
    """Name of the job."""
    logs: Path = Path("slurm")
    """Folder for what the jobs print."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, as --options=--mem=64G."""

    def _check(self, command: Any) -> None:
        super()._check(command)
        if self.command[0] == "sweep" and command.share:
            raise ValueError(f"--share {command.share} is what the tasks of an array get; leave it out")

    @property
    def _together(self) -> bool:
        return self.command[0] == "train" and self.nodes * max(1, self.gpus_per_node) > 1

    def __call__(self) -> int:
        """Submits."""
        from experiments.launch.slurm import Slurm

        command = self.checked()
        slurm = Slurm(**{field.name: getattr(self, field.name) for field in fields(Slurm)})
        if self.dry_run:
            for script in slurm.scripts(command):
                print(f"# ----- {script.name}" + (f", {' '.join(script.after)}" if script.after else ""))
                print(script.text)
            return 0
        for name, number in slurm.submit(command).items():
            print(f"{name:<16} job {number}")
        print(f"output in {self.logs}; squeue --me shows the jobs, scancel ends one")
        return 0


@dataclass(frozen=True, kw_only=True)
class TpuCommand(_CloudLauncher):
    r"""Ask Google Cloud for TPU machines that run the command as they start, and watch until it has ended.

    Slices that are taken away are asked for again, and the run goes on from its newest checkpoint, so its folder must
    be in a bucket, since the disks of new machines are empty. The machines need the extra `gcs` in the image, and
    their service account the roles Storage Object User and Storage Legacy Bucket Reader. When the command has ended,
    the slices are given back. The same command again watches again. Needs the extra `gcp` here.

        scaling launch tpu --project p --zone us-east5-a --accelerator v6e-256 --slices 2 --image IMAGE \
            -- train --placement.mesh replica=2,fsdp=256 -o gs://bucket/runs
    """

    project: str
    """Project of Google Cloud."""
    zone: str
    """Zone, as us-east5-a."""
    accelerator: str
    """Type of a slice, as v5p-128 or v5litepod-256."""
    name: str = "scaling"
    """Name of the queued resource; two launches of one name are one."""
    slices: int = 1
    """Slices, connected by the data centre's network."""
    tier: tyro.conf.EnumChoicesFromValues[Tier] = Tier.SPOT
    """Spot is cheapest and may be taken away at any time."""
    restarts: int = 10
    """How often slices are asked for again that were taken away, or lost another process, the network or storage."""
    image: str = ""
    """Container with this project in it; without one the command runs on the machine itself."""
    setup: tuple[str, ...] = ()
    """Shell commands that every machine runs first, to fetch the text or to install this project."""
    runtime: str = ""
    """Image of the machines; the usual one of the generation otherwise."""
    network: str = ""
    """Network; the project's default otherwise."""
    service_account: str = ""
    """In whose name the machines act; the project's default otherwise."""

    def __call__(self) -> int:
        """Asks, waits, watches."""
        from experiments.launch.tpu import Tpu

        command = self.checked()
        tpu = Tpu(**{field.name: getattr(self, field.name) for field in fields(Tpu)})
        if self.dry_run:
            print(json.dumps(tpu.request(command), indent=2))
            print("\n# ----- startup-script\n" + tpu.script(command))
            return 0
        return tpu.launch(command)


@dataclass(frozen=True, kw_only=True)
class GkeCommand(_CloudLauncher):
    r"""Submit a JobSet to a Kubernetes cluster with TPU slices (GKE), through the command `xpk`.

    When a machine is lost, the JobSet is started again and the run goes on from its newest checkpoint, so its folder
    must be in a bucket, for which the image needs the extra `gcs`, and the cluster's service account the roles
    Storage Object User and Storage Legacy Bucket Reader.

        scaling launch gke --cluster c --project p --zone us-east5-a --accelerator v5p-128 --slices 2 --image IMAGE \
            -- train --placement.mesh replica=2,fsdp=64 -o gs://bucket/runs
    """

    cluster: str
    """Cluster, made by xpk or fit for it."""
    project: str
    """Project of Google Cloud."""
    zone: str
    """Zone, as us-east5-a."""
    accelerator: str
    """Type of a slice, as v5p-128 or v5litepod-256."""
    image: str
    """Container with this project in it."""
    name: str = "scaling"
    """Name of the JobSet."""
    slices: int = 1
    """Slices, connected by the data centre's network."""
    restarts: int = 10
    """How often the JobSet is started again when a machine, another process, the network or storage is lost."""
    grace: int = 120
    """Seconds that a run gets to save its work before its machine is taken away."""
    options: tuple[str, ...] = ()
    """Further options of xpk workload create, as --options=--priority=high."""

    def __call__(self) -> int:
        """Submits."""
        import shlex

        from experiments.launch.gke import Gke

        command = self.checked()
        gke = Gke(**{field.name: getattr(self, field.name) for field in fields(Gke)})
        if self.dry_run:
            print(f"# {shlex.join(gke.arguments(command))}\n")
            print(gke.manifest(command))
            return 0
        gke.launch(command)
        print(f"submitted JobSet {self.name}; xpk workload list shows it, xpk workload delete ends it")
        return 0


Place = (
    Annotated[LocalCommand, tyro.conf.subcommand("local")]
    | Annotated[SlurmCommand, tyro.conf.subcommand("slurm")]
    | Annotated[TpuCommand, tyro.conf.subcommand("tpu")]
    | Annotated[GkeCommand, tyro.conf.subcommand("gke")]
    | Annotated[JoinCommand, tyro.conf.subcommand("join")]
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train elsewhere: what stands after -- is what you would type here.

    scaling launch local --processes 4 --devices 2 -- train --data.text books.txt
    """

    place: Annotated[Place, tyro.conf.arg(name="")]

    @staticmethod
    def check(arguments: Sequence[str]) -> None:
        """Tells mistakes that the parser of options would not explain.

        Raises:
            ValueError: for a place that there is not, a command without `--` before it, or options to be passed on that
                would be taken for own ones.
        """
        if arguments and arguments[0] not in PLACES and not arguments[0].startswith("-"):
            near = difflib.get_close_matches(arguments[0], PLACES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(PLACES)}"
            raise ValueError(f"no place to launch at is called '{arguments[0]}'; {hint}")
        for option, value in itertools.pairwise(arguments):
            if option == "--options" and value.startswith("-"):
                raise ValueError(f"an option to be passed on is written with '=': --options={value}")
        names = [name for name in arguments if name in TRAINS]
        if names and "--" not in arguments:
            raise ValueError(f"what is to run stands after --: scaling launch {arguments[0]} ... -- {names[0]} ...")

    def __call__(self) -> int:
        """Launches."""
        return self.place()
