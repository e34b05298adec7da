"""The status that a process ends with: all that launchers learn of why, and by which a run is started again, or is not.

| status | says | started again |
|---|---|---|
| 0 | it ended well | no |
| 1, `FAILED` | a mistake, a bug, a loss that diverged: it would end so again | no |
| 130, `STOPPED` | it was asked to stop (Ctrl-C, SIGTERM), and saved | by whoever asked, as before a preemption |
| 203, `AGAIN` | another process, the network, storage or a device was lost | yes |
| 129 to 192 | a signal ended it: its machine was taken away, memory ran out, JAX gave up (134) on others | yes |

`status_of` decides, by the kind of error, for all launchers. A restart goes on from the newest checkpoint, and all
launchers restart a limited number of times: what is wrongly held to pass costs a few starts, what is wrongly held to
stay costs the run.

203 is 128 and the 75 by which mail programs say "try again" (EX_TEMPFAIL of sysexits.h). It suits launchers as they
are:

- JobSets of xpk start again after 42 and 127 to 255, and fail for good after anything else (`get_restart_exit_codes`
  and `podFailurePolicy` in commands/workload.py of https://github.com/AI-Hypercomputer/xpk, 1.16);
- `srun` ends with the highest status of its tasks, and ends by SIGTERM (130, 143) those of which another one failed: so
  only what is above any signal's shows that a task asked for a restart.
"""

import errno
import re
from collections.abc import Iterator

FAILED = 1
STOPPED = 130
AGAIN = 203


def worth_restarting(status: int) -> bool:
    """Whether a run that ended with this status may end otherwise when it is started again."""
    return status == AGAIN or (128 < status <= 192 and status not in (STOPPED, _TERMINATED))


def status_of(error: BaseException) -> int:
    """The status that a process ends with after an error: `AGAIN` if it, or what caused it, may pass, by its kind.

    What may pass: connections that break or are not answered, and network file systems that are away; answers of a
    store that say so (HTTP 408, 429, 500 and above); the states in which JAX and TensorStore report lost processes,
    devices and servers. Not permissions, full disks or full memory.
    """
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    return AGAIN if any(_may_pass(each) for each in _with_causes(error) if isinstance(each, Exception)) else FAILED


_TERMINATED = 143
_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip
# Of aiohttp, botocore, requests and google-auth, which need not be installed; the first is Python's own too.
_NETWORK = {
    "ConnectionError", "ClientConnectionError", "ClientPayloadError", "HTTPClientError", "Timeout", "TransportError",
}  # fmt: skip
# https://abseil.io/docs/cpp/guides/status-codes. The first are so by definition; the others are how XLA tells of a
# collective whose peer is gone, or of a device that has stopped.
_STATES = re.compile(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b")
_STATES_OF_XLA = re.compile(_STATES.pattern + r"|(INTERNAL|UNKNOWN|FAILED_PRECONDITION|DATA_LOSS)\b")


def _may_pass(error: Exception) -> bool:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, TimeoutError) or kinds & _NETWORK or getattr(error, "errno", None) in _ERRNOS:
        return True
    states = _STATES_OF_XLA if kinds & {"JaxRuntimeError", "XlaRuntimeError"} else _STATES
    code = getattr(error, "code", None)  # of HTTP
    return bool(states.match(str(error))) or (isinstance(code, int) and (code in (408, 429) or 500 <= code < 600))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
