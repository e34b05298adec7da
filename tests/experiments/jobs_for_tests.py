"""Tiny jobs that the tests of the local launcher run in worker processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.launch.worker import stop_requested

calls = 0


def square(payload, report):
    report({"squaring": payload["x"]})
    return payload["x"] ** 2


def misbehave(payload, report):
    match payload["how"]:
        case "raise":
            raise ValueError("two\nlines")
        case "exit":
            sys.exit(3)
        case "result":
            return object()
        case "event":
            report({"x": object()})
        case "segfault":
            print("about to fall", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(7)


def process_facts(payload, report):
    global calls
    calls += 1
    return {
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "calls": calls,
        "environment": {name: os.environ.get(name) for name in payload.get("names", [])},
    }


def noise(payload, report):
    print('{"result": "forged"}')
    os.write(1, b'{"result": "forged"}\n')
    subprocess.run([sys.executable, "-c", "print('{\"event\": {}}')"], check=True)
    report({"read": sys.stdin.read()})
    return "genuine"


def fork_and_die(payload, report):
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def until_stopped(payload, report):
    """Announces itself, waits to be stopped, and leaves a file as its saved work; or ignores the request."""
    report({"pid": os.getpid()})
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if stop_requested() and not payload["stubborn"]:
            Path(payload["saved"]).write_text("saved")
            return None
        time.sleep(0.01)
    raise TimeoutError("nobody stopped this job")
