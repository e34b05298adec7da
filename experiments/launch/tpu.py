"""Cloud TPU machines: a queued resource whose machines run the command as they start, so that nobody logs in to them.

The launcher asks for the slices, waits for them, and watches. Every machine writes the status its command ended with
where the service can read it (its guest attributes). Slices that are taken away, or whose command ended for a reason
that may pass (`parallel.ending`), are asked for again, up to a limit, and the run goes on from its newest checkpoint,
which therefore must lie where all machines see it, as gs://bucket/folder.

Needs the extra `gcp` (the package google-cloud-tpu). https://docs.cloud.google.com/tpu/docs/queued-resources
"""

import contextlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from parallel.ending import worth_restarting

if TYPE_CHECKING:
    from google.cloud.tpu_v2 import CreateQueuedResourceRequest, TpuClient


class Tier(Enum):
    """How slices are had: cheaply and until somebody pays more, when there are some, or as they were reserved."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"
    RESERVED = "reserved"


RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""Image of the machines of each generation. https://docs.cloud.google.com/tpu/docs/runtimes"""

STOPPED = ("130", "143")
"""Statuses of a command that was asked to stop, as it is before its machine is taken away; they end nothing."""


@dataclass(frozen=True, kw_only=True)
class Tpu:
    """Slices of TPUs, and what runs on them.

    Attributes:
        project: of Google Cloud.
        zone: as "us-east5-a".
        accelerator: type of a slice, as "v5p-128" or "v5litepod-256".
        name: of the queued resource; two launches of one name are one.
        slices: how many, connected by the data centre's network.
        tier: how they are had.
        restarts: how often slices are asked for again that were taken away, or lost what may be there again.
        image: container in which the command runs; on the machine itself if empty.
        setup: shell commands that every machine runs first.
        runtime: image of the machines; the usual one of the generation if empty.
        network: the project's default if empty.
        service_account: in whose name the machines act; the project's default if empty.

    Raises:
        ValueError: an accelerator of unknown generation, a name that Google Cloud does not take, fewer than one slice,
            or no way for the program to get there.
    """

    project: str
    zone: str
    accelerator: str
    name: str
    slices: int = 1
    tier: Tier = Tier.SPOT
    restarts: int = 10
    image: str = ""
    setup: tuple[str, ...] = ()
    runtime: str = ""
    network: str = ""
    service_account: str = ""

    def __post_init__(self) -> None:
        generation, _, size = self.accelerator.partition("-")
        if not size.isdecimal() or generation not in RUNTIMES:
            raise ValueError(
                f"an accelerator is written as v5p-128, of {', '.join(RUNTIMES)}, and not {self.accelerator!r}"
            )
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(f"{self.name!r} is no name for machines: at most 63 of a-z, 0-9 and -, from a letter on")
        if self.slices < 1 or self.restarts < 0:
            raise ValueError(f"{self.slices} slices and {self.restarts} restarts: one slice at least, and no debts")
        if not (self.image or self.setup):
            raise ValueError("machines start bare: give a container with --image, or --setup 'pip install ...'")

    @property
    def parent(self) -> str:
        """Where the resource belongs."""
        return f"projects/{self.project}/locations/{self.zone}"

    @property
    def resource(self) -> str:
        """Its full name."""
        return f"{self.parent}/queuedResources/{self.name}"

    @property
    def nodes(self) -> tuple[str, ...]:
        """Full names of the slices."""
        names = [self.name] if self.slices == 1 else [f"{self.name}-{number}" for number in range(self.slices)]
        return tuple(f"{self.parent}/nodes/{name}" for name in names)

    def script(self, command: Sequence[str]) -> str:
        """What every machine runs at every start, until the command has ended well."""
        run = shlex.join(["scaling", *command])
        if self.image:
            run = f"docker run --rm --privileged --net host -v /mnt:/mnt {shlex.quote(self.image)} {run}"
        return _SCRIPT.format(setup="\n".join(self.setup), run=run)

    def request(self, command: Sequence[str]) -> dict[str, Any]:
        """The request for the slices, as the service's JSON."""
        node = {
            "acceleratorType": self.accelerator,
            "runtimeVersion": self.runtime or RUNTIMES[self.accelerator.partition("-")[0]],
            "networkConfig": {"enableExternalIps": True} | ({"network": self.network} if self.network else {}),
            "metadata": {"startup-script": self.script(command), "enable-guest-attributes": "TRUE"},
        }
        if self.service_account:
            scope = "https://www.googleapis.com/auth/cloud-platform"
            node["serviceAccount"] = {"email": self.service_account, "scope": [scope]}
        if self.tier is Tier.RESERVED:
            node["schedulingConfig"] = {"reserved": True}
        names = {"nodeId": self.name}
        if self.slices > 1:
            names = {"multisliceParams": {"nodeCount": self.slices, "nodeIdPrefix": self.name}}
        resource: dict[str, Any] = {"tpu": {"nodeSpec": [{"parent": self.parent, **names, "node": node}]}}
        if self.tier is not Tier.ON_DEMAND:
            resource |= {"spot": {}} if self.tier is Tier.SPOT else {"guaranteed": {}}
        return {"parent": self.parent, "queuedResourceId": self.name, "queuedResource": resource}

    def launch(
        self,
        command: Sequence[str],
        *,
        client: "TpuClient | None" = None,
        say: Callable[[str], None] = print,
        every: float = 30.0,
        patience: float = 600.0,
    ) -> int:
        """Asks for the slices, waits, watches, and gives them back when the command has ended.

        Where there are such slices with this very command, it goes on watching them. If this process ends, the command
        runs on, and launching it again watches it again.

        Args:
            command: arguments of `scaling`.
            client: of the service; the real one if None.
            say: told what happens, in a line each.
            every: seconds between looks.
            patience: seconds that the service may be unavailable before that is an error.

        Returns:
            0 if the command ended well on all machines, else the status it ended with for good on one.

        Raises:
            OSError: what the service refuses (quota, permission, capacity), in its own words.
            ValueError: another command runs under this name.
        """
        watch = _Watch(self, command, client or _client(), say, every, patience)
        with _refusals():
            return watch.until_ended()


class _Watch:
    """One launch, as the service sees it."""

    def __init__(
        self,
        tpu: Tpu,
        command: Sequence[str],
        client: "TpuClient",
        say: Callable[[str], None],
        every: float,
        patience: float,
    ) -> None:
        from google.api_core import exceptions, retry

        self._tpu, self._command, self._client, self._say = tpu, command, client, say
        self._every, self._patience = every, patience
        passing = (exceptions.ServiceUnavailable, exceptions.DeadlineExceeded, exceptions.InternalServerError)
        self._retry = retry.Retry(retry.if_exception_type(*passing), initial=min(1.0, every), timeout=patience)

    def until_ended(self) -> int:
        self._ask()
        for restart in range(self._tpu.restarts + 1):
            ended = self._until_ended_or_lost()
            self._give_back()
            if isinstance(ended, int):
                return ended
            if restart < self._tpu.restarts:
                self._say(f"{self._tpu.name}: {ended}; asking again ({restart + 1} of {self._tpu.restarts} times)")
                self._ask()
        raise OSError(
            f"{self._tpu.name} was lost {self._tpu.restarts + 1} times, which is as often as --restarts allows, the "
            f"last time {ended}; the same command goes on"
        )

    def _ask(self) -> None:
        from google.api_core import exceptions

        request = _message(self._tpu.request(self._command))
        try:
            asked = self._client.create_queued_resource(request=request, retry=self._retry)
            asked.result(timeout=self._patience)
        except exceptions.AlreadyExists:
            there = self._client.get_queued_resource(name=self._tpu.resource, retry=self._retry)
            (spec,) = there.tpu.node_spec
            if spec.node.metadata.get("startup-script") != self._tpu.script(self._command):
                raise ValueError(
                    f"{self._tpu.name} runs another command; choose another --name, or end it: {self._how_to_end()}"
                ) from None
            self._say(f"{self._tpu.name}: is there already, with this command")
        else:
            self._say(f"{self._tpu.name}: asked for; to end it: {self._how_to_end()}")

    def _until_ended_or_lost(self) -> int | str:
        """The status that the command ended with, or how the slices were lost."""
        from google.cloud.tpu_v2 import QueuedResourceState

        states, before, looks = QueuedResourceState.State, None, 0
        while True:
            told = self._client.get_queued_resource(name=self._tpu.resource, retry=self._retry).state
            if told.state != before:
                before = told.state
                self._say(f"{self._tpu.name}: {before.name.lower().replace('_', ' ')}")
            if before in (states.SUSPENDING, states.SUSPENDED):
                return "taken away"
            if before is states.DELETING:
                raise OSError(f"{self._tpu.name} is being deleted, by somebody else")
            if before is states.FAILED:
                self._give_back()
                raise OSError(f"{self._tpu.name} failed: {told.failed_data.error.message}")
            if before is states.ACTIVE and (status := self._ended()) is not None:
                looks += 1  # a second one, before which the machine that all others lost can say that it is for good
                if not worth_restarting(status):
                    return status
                if looks == 2:
                    return f"ended with status {status}, which may pass"
            time.sleep(self._every)

    def _ended(self) -> int | None:
        """The status that the command ended with, once it has on all machines, or badly on one: for good, if on any."""
        machines, well, passing = 0, 0, None
        for name in self._tpu.nodes:
            machines += len(self._client.get_node(name=name, retry=self._retry).network_endpoints)
            for told in self._told(name):
                status = told.get("status")
                if status is None or status in STOPPED:
                    continue
                if status == "0":
                    well += 1
                elif worth_restarting(int(status)):
                    passing = int(status)
                else:
                    self._say(f"{name.rpartition('/')[2]}: ended with status {status}; its last words:")
                    self._say(told.get("words", "").rstrip())
                    return int(status)
        return 0 if machines and well == machines else passing

    def _told(self, node: str) -> list[dict[str, str]]:
        """What the machines of a slice have written for the launcher."""
        from google.api_core import exceptions

        request = {"name": node, "query_path": "scaling/"}
        try:
            answer = self._client.get_guest_attributes(request=request, retry=self._retry)
        except exceptions.NotFound:  # nothing yet
            return []
        return [{entry.key: entry.value for entry in each.query_value.items} for each in answer.guest_attributes]

    def _give_back(self) -> None:
        request = {"name": self._tpu.resource, "force": True}
        self._client.delete_queued_resource(request=request, retry=self._retry).result(timeout=self._patience)

    def _how_to_end(self) -> str:
        tpu = self._tpu
        where = f"--project {tpu.project} --zone {tpu.zone}"
        return f"gcloud compute tpus queued-resources delete {tpu.name} {where} --force"


def _client() -> "TpuClient":
    try:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.tpu_v2 import TpuClient
    except ImportError:
        raise ValueError("Cloud TPUs need google-cloud-tpu: pip install 'scaling-experiments[gcp]'") from None
    try:
        return TpuClient()
    except DefaultCredentialsError:
        raise OSError("Google Cloud does not know who you are: gcloud auth application-default login") from None


def _message(request: dict[str, Any]) -> "CreateQueuedResourceRequest":
    from google.cloud.tpu_v2 import CreateQueuedResourceRequest

    return CreateQueuedResourceRequest.from_json(json.dumps(request))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the service refuses becomes one line."""
    from google.api_core import exceptions

    try:
        yield
    except exceptions.ResourceExhausted as error:
        raise OSError(f"no quota: {error.message}") from error
    except exceptions.RetryError as error:
        raise OSError(f"the service does not answer: {error.cause}") from error
    except exceptions.GoogleAPICallError as error:
        raise OSError(f"{type(error).__name__}: {error.message}") from error


_SCRIPT = """\
#!/bin/bash
# Runs on every machine at every start, until the command has ended well.
log=/var/log/scaling.log
told=http://metadata.google.internal/computeMetadata/v1/instance/guest-attributes/scaling
ask() {{ curl -sf -H 'Metadata-Flavor: Google' "$told/$1"; }}
tell() {{ curl -sf -H 'Metadata-Flavor: Google' -X PUT --data-binary @- "$told/$1"; }}
[ "$(ask status)" = 0 ] && exit
(
set -e
{setup}
{run}
) 2>&1 | tee -a "$log"
status=${{PIPESTATUS[0]}}
tail -c 4000 "$log" | tell words
echo -n "$status" | tell status
"""
