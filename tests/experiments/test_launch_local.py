"""Jobs in local worker processes: order, isolation of failures, no process left behind, nothing lost in noise."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from experiments.launch.environment import cpu_environment
from experiments.launch.local import Job, Status, run_all
from experiments.launch.lock import exclusive

MODULE = "jobs_for_tests"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable_jobs(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def job(function, **payload):
    return Job(entry=f"{MODULE}:{function}", payload=payload)


def ignore(index, event):
    pass


def gone(pid):
    """Whether the process has ended (a zombie has)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)


def run_program(text, *arguments, **options):
    program = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent.parent)]!r}\n" + textwrap.dedent(text)
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_outcomes_in_order_and_events_by_job(workers):
    events, concluded = [], []
    outcomes = run_all(
        [job("square", x=x) for x in range(7)],
        workers=workers,
        on_event=lambda index, event: events.append((index, event)),
        on_outcome=lambda index, outcome: concluded.append((index, outcome)),
    )
    assert [outcome.result for outcome in outcomes] == [x**2 for x in range(7)]
    assert {outcome.status for outcome in outcomes} == {Status.DONE}
    assert sorted(events, key=lambda pair: pair[0]) == [(x, {"squaring": x}) for x in range(7)]
    assert sorted(concluded, key=lambda pair: pair[0]) == list(enumerate(outcomes))


def test_no_jobs():
    assert run_all([], workers=2, on_event=ignore) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_that_raises_fails_alone(workers, tmp_path, capsys):
    hows = ["raise", "exit", "result", "event"]
    jobs = [job("misbehave", how=how) for how in hows]
    jobs += [Job(entry="no_such_module:f", payload={}), Job(entry=f"{MODULE}:no_such", payload={}), job("square", x=5)]
    outcomes = run_all(jobs, workers=workers, on_event=ignore, logs=tmp_path)
    assert [outcome.reason for outcome in outcomes] == [
        "ValueError: two lines",
        "SystemExit: 3",
        "TypeError: Object of type object is not JSON serializable",
        "TypeError: Object of type object is not JSON serializable",
        "ModuleNotFoundError: No module named 'no_such_module'",
        f"AttributeError: module '{MODULE}' has no attribute 'no_such'",
        None,
    ]
    assert [outcome.status for outcome in outcomes] == [Status.FAILED] * 6 + [Status.DONE]
    log = "".join(path.read_text() for path in tmp_path.iterdir()) if workers else capsys.readouterr().err
    assert "Traceback" in log
    assert "jobs_for_tests.py" in log


def test_a_worker_that_dies_fails_one_job_and_is_replaced():
    jobs = [job("misbehave", how=how) for how in ("segfault", "kill", "leave")]
    jobs = [job("process_facts"), *jobs, job("process_facts"), job("process_facts")]
    outcomes = run_all(jobs, workers=1, on_event=ignore)
    assert [outcome.reason for outcome in outcomes[1:4]] == [
        "worker process was killed by SIGSEGV; its last words: about to fall",
        "worker process was killed by SIGKILL (out of memory?)",
        "worker process exited with status 7",
    ]
    before, after, again = (outcomes[i].result for i in (0, 4, 5))
    assert before["pid"] != after["pid"]
    assert (again["pid"], again["calls"]) == (after["pid"], 2), "a worker is not kept from job to job"


def test_death_is_noticed_although_a_child_holds_the_pipe():
    started = time.monotonic()
    (outcome,) = run_all([job("fork_and_die")], workers=1, on_event=ignore)
    assert "SIGKILL" in outcome.reason
    assert time.monotonic() - started < 6


def test_noise_is_not_a_message(tmp_path):
    events = []
    outcomes = run_all([job("noise")], workers=1, on_event=lambda *event: events.append(event), logs=tmp_path)
    assert outcomes[0].result == "genuine"
    assert events == [(0, {"read": ""})], "a job could read the jobs that wait"
    assert (tmp_path / "worker-0.log").read_text().count("forged") == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform cannot pin processes")
def test_workers_are_pinned_and_have_the_environment(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    names = ["XLA_FLAGS", "JAX_PLATFORMS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR"]
    cores = sorted(os.sched_getaffinity(0))
    seen = {}

    def see(index, outcome):
        seen.setdefault(outcome.result["pid"], outcome.result)

    jobs = [job("process_facts", names=names) for _ in range(2 * len(cores))]
    run_all(jobs, workers=len(cores), on_event=ignore, on_outcome=see, devices=2)
    assert sorted(facts["cores"] for facts in seen.values()) == [[core] for core in cores]
    assert {json.dumps(facts["environment"]) for facts in seen.values()} == {
        json.dumps({name: cpu_environment(devices=2)[name] for name in names})
    }
    assert os.sched_getaffinity(0) == set(cores), "this process itself was pinned"


def test_an_error_in_a_callback_leaves_no_process():
    pids = []

    def fail(index, event):
        pids.append(event["pid"])
        raise RuntimeError("callback")

    with pytest.raises(RuntimeError, match="callback"):
        run_all([job("until_stopped", stubborn=True)], workers=1, on_event=fail)
    assert gone(pids[0])


LONG_JOBS = """
    import sys
    from experiments.launch.local import Job, run_all
    stubborn = sys.argv[2] == "stubborn"
    jobs = [
        Job(entry="jobs_for_tests:until_stopped", payload={"stubborn": stubborn, "saved": f"{sys.argv[1]}/{i}"})
        for i in range(4)
    ]
    try:
        run_all(jobs, workers=2, on_event=lambda i, event: print(event["pid"], flush=True), grace=1.0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_killed_parent_takes_its_workers_along(tmp_path):
    parent = run_program(LONG_JOBS, tmp_path, "stubborn")
    with parent:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(gone(pid) for pid in pids)
        parent.kill()
        wait_until(lambda: all(gone(pid) for pid in pids), seconds=2)


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_ctrl_c(tmp_path, manner):
    """As a terminal does it: SIGINT to the whole process group."""

    # Tests run in the background of a shell inherit that interrupts are ignored; a program in a terminal heeds them.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    parent = run_program(heed + textwrap.dedent(LONG_JOBS), tmp_path, manner, start_new_session=True)
    with parent:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "interrupted\n"
        assert all(gone(pid) for pid in pids)
        assert parent.wait(timeout=5) == 0
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == (["0", "1"] if manner == "polite" else []), "jobs that waited must not be started"


@pytest.mark.parametrize("entry", ["module", "module:", ":function", "a..b:f", "module:f()"])
def test_entry_must_be_module_and_function(entry):
    with pytest.raises(ValueError, match=r"package\.module:function"):
        Job(entry=entry, payload={})


def test_bad_numbers():
    with pytest.raises(ValueError, match="workers must be 0"):
        run_all([], workers=-1, on_event=ignore)
    with pytest.raises(ValueError, match="at least 1 device"):
        run_all([job("square", x=1)], workers=1, on_event=ignore, devices=0)


class TestEnvironment:
    def test_keeps_what_the_user_set(self):
        base = {
            "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=2",
            "JAX_COMPILATION_CACHE_DIR": "/cache",
            "OTHER": "x",
        }
        made = cpu_environment(devices=3, base=base)
        assert made["XLA_FLAGS"].split() == ["--xla_a=1", "--xla_b=2", "--xla_force_host_platform_device_count=3"]
        assert {name: made[name] for name in base if name != "XLA_FLAGS"} == {
            name: value for name, value in base.items() if name != "XLA_FLAGS"
        }
        assert cpu_environment(devices=3, base=made) == made

    def test_restart_happens_once_and_keeps_the_command(self):
        program = """
            import os, sys
            print(os.getpid(), flush=True)
            from experiments.launch.environment import restart_for_cpu
            restart_for_cpu(devices=2)
            print(sys.argv[1:], os.environ["XLA_FLAGS"])
        """
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        child = run_program(program, "an argument", "--option", env=environment)
        lines = child.communicate(timeout=10)[0].splitlines()
        assert lines[0] == lines[1] == str(child.pid)
        assert lines[2:] == ["['an argument', '--option'] --xla_force_host_platform_device_count=2"]

    def test_no_restart_for_an_accelerator(self):
        program = """
            import os
            from experiments.launch.environment import restart_for_cpu
            restart_for_cpu()
            print(os.environ["XLA_FLAGS"] == "")
        """
        child = run_program(program, env=os.environ | {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""})
        assert child.communicate(timeout=10)[0] == "True\n"


class TestExclusive:
    def test_second_holder_is_refused_until_the_first_has_left(self, tmp_path):
        holder = run_program(
            """
            import sys, time
            from experiments.launch.lock import exclusive
            with exclusive(sys.argv[1]):
                print("held", flush=True)
                time.sleep(30)
            """,
            tmp_path / "new" / "run",
        )
        with holder:
            assert holder.stdout.readline() == "held\n"
            refused = pytest.raises(OSError, match=rf"in use by another process \(pid {holder.pid}\)")
            with refused, exclusive(tmp_path / "new" / "run"):
                pass
            with exclusive(tmp_path / "new" / "other"):
                holder.kill()
        with exclusive(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run" / ".lock").read_text() == str(os.getpid())

    def test_released_after_an_error(self, tmp_path):
        with pytest.raises(RuntimeError), exclusive(tmp_path):
            raise RuntimeError
        with exclusive(tmp_path):
            pass
