"""What a restart can mend is told from what it cannot by the kind of error, wherever it stands in a chain of causes."""

import errno
import signal
import subprocess
import sys

import jax
import pytest

from parallel.ending import AGAIN, FAILED, STOPPED, status_of, worth_restarting


def caused(error, cause):
    try:
        raise error from cause
    except type(error) as raised:
        return raised


def in_place_of(error, cause):
    try:
        try:
            raise cause
        except type(cause):
            raise error from None
    except type(error) as raised:
        return raised


class HttpError(Exception):
    def __init__(self, code):
        super().__init__("said so")
        self.code = code


class ClientConnectionError(Exception):
    """As aiohttp has it."""


LOST = "FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4321"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), STOPPED),
        (ValueError("no such option"), FAILED),
        (RuntimeError("step 5 of 9: loss nan"), FAILED),
        (TypeError("a bug"), FAILED),
        (MemoryError(), FAILED),
        (ConnectionError("did not answer"), AGAIN),
        (ConnectionResetError(), AGAIN),
        (TimeoutError(), AGAIN),
        (ClientConnectionError(), AGAIN),
        (OSError(errno.ESTALE, "stale file handle"), AGAIN),
        (OSError(errno.EIO, "input/output error"), AGAIN),
        (OSError(errno.ENOSPC, "no space left"), FAILED),
        (PermissionError(errno.EACCES, "denied"), FAILED),
        (FileNotFoundError(errno.ENOENT, "no such file"), FAILED),
        (HttpError(503), AGAIN),
        (HttpError(429), AGAIN),
        (HttpError(403), FAILED),
        (SystemExit(503), FAILED),
        (jax.errors.JaxRuntimeError(LOST), AGAIN),
        (jax.errors.JaxRuntimeError("INTERNAL: core halted unexpectedly"), AGAIN),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), FAILED),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), FAILED),
        (ValueError("UNAVAILABLE: the store does not answer"), AGAIN),
        (ValueError("INTERNAL: not of XLA"), FAILED),
        (caused(OSError("gs://b/x cannot be written"), HttpError(503)), AGAIN),
        (caused(OSError("gs://b/x cannot be written"), HttpError(403)), FAILED),
        (caused(OSError("could not write"), caused(ValueError("wrapped"), TimeoutError())), AGAIN),
        (in_place_of(ValueError("no such table"), TimeoutError()), FAILED),
    ],
    ids=repr,
)
def test_kinds_of_errors(error, status):
    assert status_of(error) == status


def test_statuses_worth_another_start():
    again = {status for status in range(256) if worth_restarting(status)}
    assert {AGAIN, *(128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV))} <= again
    assert not {0, FAILED, 2, 125, 126, 127, STOPPED, 128 + signal.SIGTERM} & again
    assert max(again) == AGAIN > 128 + signal.SIGRTMAX, "srun tells of the highest"


def test_nothing_heavy_is_imported():
    code = "import sys, parallel.ending; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
