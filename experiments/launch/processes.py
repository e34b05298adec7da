"""One run in several processes on this machine, each with forced CPU devices: what a cluster does, in small."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from experiments.launch.environment import cpu_environment, for_child
from parallel.distributed import Cluster

LAST_WORDS = 5.0
"""Seconds that processes get to end by themselves when one of them has failed: often all fail of one reason."""

MEMBER = ("-P", "-m", "experiments.launch.member")
"""What Python runs in each process; this one's id and the command follow."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """Several processes on this machine.

    Attributes:
        processes: how many.
        devices: XLA host devices of each.
        grace: seconds that they get to save their work after Ctrl-C.

    Raises:
        ValueError: fewer than one process or device.
    """

    processes: int
    devices: int = 1
    grace: float = 60.0

    def __post_init__(self) -> None:
        if self.processes < 1 or self.devices < 1:
            raise ValueError(f"{self.processes} processes of {self.devices} devices: both must be at least 1")

    def environments(self, coordinator: str) -> list[dict[str, str]]:
        """What the environment of each process adds to this one's.

        Args:
            coordinator: `host:port` where process 0 is to listen.
        """
        common = cpu_environment(devices=self.devices)
        changed = {name: value for name, value in common.items() if os.environ.get(name) != value}
        clusters = (
            Cluster(coordinator=coordinator, processes=self.processes, process=process)
            for process in range(self.processes)
        )
        return [changed | cluster.environment() for cluster in clusters]

    def shown(self, command: Sequence[str]) -> str:
        """Command lines that do by hand what `launch` does, one a process; it chooses the port when it starts them."""
        lines = []
        for environment in self.environments("127.0.0.1:0"):
            variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
            lines.append(f"{variables} {shlex.join([sys.executable, '-m', 'experiments.cli', *command])}")
        return "\n".join(lines)

    def launch(self, command: Sequence[str]) -> int:
        """Run `scaling` with these arguments in every process until all have ended.

        What a process prints is passed on line by line behind its number, less the chatter of its collectives. When
        one fails or is killed, the others are ended within seconds, and the last line says which it was and how it
        ended. Ctrl-C and SIGTERM are passed on, so that the run saves and can be gone on with; a second one kills. If
        this process dies, so do they.

        Args:
            command: arguments of `scaling`, as `("train", "--steps", "100")`.

        Returns:
            0 if all ended well, 130 if they were asked to stop, else the exit status of the first that failed: 128 + n
            where signal n killed it.
        """
        environments = self.environments(f"127.0.0.1:{_free_port()}")
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(_asked())
            members = [_Member(number, command, environment) for number, environment in enumerate(environments)]
            for member in members:
                stack.callback(member.end)
            return self._watch(members, stop)

    def _watch(self, members: list["_Member"], asked: list[int]) -> int:
        failed: _Member | None = None
        passed_on = 0  # how many of the requests to stop have been dealt with
        deadline = float("inf")
        while running := [member for member in members if member.status is None]:
            time.sleep(0.05)
            if len(asked) > passed_on:
                passed_on = len(asked)
                deadline = time.monotonic() + (self.grace if passed_on == 1 else 0)
                _say("stopping: the processes save their work; once more to kill them" if passed_on == 1 else "killing")
                for member in running:
                    member.process.terminate()
            for member in running:
                if (status := member.process.poll()) is not None:
                    member.status = status
                    if status != 0 and not (asked and status == 130) and failed is None:
                        failed = member
                        deadline = min(deadline, time.monotonic() + LAST_WORDS)
            if time.monotonic() > deadline:
                for member in running:
                    member.process.kill()
        for member in members:
            member.drain()
        if asked:
            return 130
        if failed is not None:
            _say(f"process {failed.number} of {len(members)} {failed.death()}; the others were ended")
            return failed.status if failed.status > 0 else 128 - failed.status
        return 0


class _Member:
    """One process of the run, and the threads that pass its output on."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number = number
        self.status: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, *MEMBER, str(os.getpid()), *command],
            env=for_child(os.environ | environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # a terminal sends Ctrl-C to its foreground group; these are asked by their launcher
        )
        streams = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        self._relays = [threading.Thread(target=self._relay, args=each, daemon=True) for each in streams]
        for relay in self._relays:
            relay.start()

    def _relay(self, source: IO[str], to: IO[str]) -> None:
        for line in source:
            if any(words in line for words in _CHATTER):
                continue
            with _printing:
                to.write(f"[{self.number}] {line}")
                to.flush()

    def death(self) -> str:
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"

    def drain(self) -> None:
        """Wait until what it printed is passed on; not for long, as a process of its own may hold the pipe open."""
        for relay in self._relays:
            relay.join(timeout=2)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


# Printed at every first meeting of some devices, with no way to turn it off; two such lines may tear each other.
_CHATTER = ("[Gloo] Rank ", " connected peer ranks ")
_printing = threading.Lock()


def _say(line: str) -> None:
    with _printing:
        print(f"scaling launch: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _asked() -> Iterator[list[int]]:
    """Yields a list that grows by every SIGINT or SIGTERM that arrives, in place of what they did before."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
