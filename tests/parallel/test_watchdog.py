"""A process that gets no further says so and ends; one that does is left alone."""

import subprocess
import sys

import pytest

from parallel.ending import AGAIN
from parallel.watchdog import Watchdog

PROGRAM = """
import sys, time
from parallel.watchdog import Watchdog

with Watchdog(1.0) as clock:
    for step in range(8):
        clock.at(f"step {step} of 8")
        time.sleep(0.25)
    if sys.argv[1] == "hangs":
        time.sleep(60)
time.sleep(1.5)  # nobody watches any more
print("done")
"""


def outcome(how):
    return subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=50, check=False)


def test_a_hang_is_told_and_ended():
    found = outcome("hangs")
    assert found.returncode == AGAIN
    assert "process 0 of 1 on " in found.stderr
    assert "nothing for 1 s after step 7 of 8; giving up" in found.stderr
    assert 'File "<string>", line 10 in <module>' in found.stderr  # where it stands


def test_what_gets_on_is_left_alone():
    found = outcome("goes on")
    assert (found.returncode, found.stdout) == (0, "done\n")


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="positive time"):
        Watchdog(0.0)
