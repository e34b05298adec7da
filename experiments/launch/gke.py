"""TPU slices on Kubernetes (GKE): a JobSet, which the command `xpk` writes and submits.

xpk knows the machines, node labels and queues of a cluster, so that this need not. Its own dry run writes the very
manifest that it would submit, which is what `--dry-run` shows. It pins the versions of much that it needs: install it
by itself (`uv tool install xpk`), not beside this project. Inside, each machine learns from its environment who it is
(`parallel.distributed`), and a JobSet that is started again goes on from the run's newest checkpoint. It is for the
statuses that xpk's manifests start it again for, among which those are that say that a restart can mend what happened
(`parallel.ending`); any other status fails it for good.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Gke:
    """Slices of a cluster, and what runs on them.

    Attributes:
        cluster: made by xpk, or fit for it.
        project: of Google Cloud.
        zone: of the cluster, as "us-east5-a".
        accelerator: type of a slice, as "v5p-128" or "v5litepod-256".
        image: container with this project in it.
        name: of the JobSet.
        slices: how many, connected by the data centre's network.
        restarts: how often the JobSet is started again when a machine, another process, the network or storage is lost;
            a run that fails of itself is not.
        grace: seconds that a run gets to save its work before its machine is taken away.
        options: further options of `xpk workload create`, as "--priority=high" or "--storage=bucket".

    Raises:
        ValueError: a name that Kubernetes does not take, fewer than one slice, or an option that is none.
    """

    cluster: str
    project: str
    zone: str
    accelerator: str
    image: str
    name: str = "scaling"
    slices: int = 1
    restarts: int = 10
    grace: int = 120
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise ValueError(f"{self.name!r} is no name for a JobSet: at most 40 of a-z, 0-9 and -, from a letter on")
        if self.slices < 1 or self.restarts < 0:
            raise ValueError(f"{self.slices} slices and {self.restarts} restarts: one slice at least, and no debts")
        if self.grace < 0:
            raise ValueError(f"a grace of {self.grace} seconds: none is 0")
        if wrong := [option for option in self.options if not option.startswith("--")]:
            raise ValueError(f"{wrong[0]!r} is no option of xpk, which begin with dashes: --priority=high")

    def arguments(self, command: Sequence[str]) -> list[str]:
        """The command line of xpk.

        Args:
            command: arguments of `scaling`.
        """
        settings = {
            "cluster": self.cluster,
            "project": self.project,
            "zone": self.zone,
            "workload": self.name,
            "tpu-type": self.accelerator,
            "num-slices": self.slices,
            "docker-image": self.image,
            "max-restarts": self.restarts,
            "termination-grace-period-seconds": self.grace,
            # xpk starts it in a shell, and passes on to that shell what asks the run to stop: there must be none.
            "command": f"exec {shlex.join(['scaling', *command])}",
        }
        given = [f"--{name}={value}" for name, value in settings.items()]
        return ["xpk", "workload", "create", *given, *self.options]

    def manifest(self, command: Sequence[str]) -> str:
        """The JobSet in YAML, by xpk's own dry run, which asks no cluster.

        Raises:
            OSError: xpk is not here, or refuses; the message is its own.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "manifest.yaml"
            said = _run([*self.arguments(command), "--dry-run", f"--output-manifest-file={file}"])
            if not file.is_file():
                raise OSError(f"xpk wrote no manifest; its last words: {said}")
            return file.read_text()

    def launch(self, command: Sequence[str]) -> None:
        """Submits the JobSet.

        Raises:
            OSError: xpk is not here, or refuses; the message is its own.
        """
        _run(self.arguments(command))


def _run(arguments: Sequence[str]) -> str:
    """The last line that xpk printed."""
    if shutil.which("xpk") is None:
        raise OSError("xpk is not on this machine: uv tool install xpk")
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = lines[-1] if lines else "nothing"
    if done.returncode:
        raise OSError(f"xpk ended with status {done.returncode}: {said}")
    return said
