"""The clock of hangs: a process that gets no further says so, with its name and step, and ends.

Processes of one run wait for each other in every step, and JAX waits without end: when one of them hangs (a file system
that does not answer, a device that is stuck), all hang, in silence. Here each watches itself. One that is not heard of
in time says where each of its threads stands and ends, and the others then miss it (`parallel.distributed`). Another
start may find what hung mended, so that the status asks for one (`parallel.ending`).
"""

import faulthandler
import os
import socket
import sys
import threading
import time

import jax

from parallel.ending import AGAIN


class Watchdog:
    """Ends this process if it is not heard of for a while; use it as a context manager.

    Args:
        seconds: longest time between two calls of `at`; None to watch nothing. Compiling counts, evaluating too.

    Raises:
        ValueError: if the time is not positive.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"a process cannot be given up after {seconds:g} seconds; want a positive time, or none")
        self._seconds = seconds
        self._heard, self._where = time.monotonic(), "its start"
        self._over = threading.Event()

    def at(self, where: str) -> None:
        """Says that the process has come as far as `where`, which is what is told if it gets no further."""
        self._heard, self._where = time.monotonic(), where

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self.at(self._where)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._heard + self._seconds - time.monotonic())):
            if time.monotonic() - self._heard >= self._seconds:
                self._give_up()

    def _give_up(self) -> None:
        who = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
        print(f"{who}: nothing for {self._seconds:g} s after {self._where}; giving up", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(AGAIN)
