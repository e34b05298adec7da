"""Slurm: batch scripts of our own rendering, few and readable, so that what runs is what `--dry-run` shows.

A run is one job on all its nodes. A sweep is three: rows are prepared once, an array trains the cells, each of its
tasks a share of them, and a last job fits and reports. Every job is the user's own command with at most one option
more, and every job can begin again at any time: what is finished is never done twice, and what was stopped goes on.
Slurm itself queues again what loses a node. The script queues again what is preempted or out of time, and what says by
its status that something was lost that may be there again (`parallel.ending`).
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.ending import AGAIN, STOPPED


@dataclass(frozen=True, kw_only=True)
class Script:
    """A batch job.

    Attributes:
        name: of the job.
        text: the script, with its options in it.
        after: which earlier job must have ended, and how ("afterok" or "afterany"); None for no dependency.
    """

    name: str
    text: str
    after: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What to ask of Slurm.

    Attributes:
        nodes: of a run, all of which it trains on; of a sweep, how many work at its cells at a time.
        gpus_per_node: GPUs of each; a run has a process for each GPU, or one for each node where there are none.
        cpus_per_task: cores of each process; Slurm's default if None.
        array: tasks that share the cells of a sweep; as many as nodes if None.
        time: limit of a job, as sbatch takes it; the partition's if empty. A run that meets it is queued again.
        partition: Slurm's default if empty.
        account: Slurm's default if empty.
        notice: seconds before the end of the time at which a run is asked to save.
        restarts: how often a job is queued again that lost another process, the network or storage, and did not last
            ten minutes; one that lasted longer always is.
        name: of the job, or the beginning of the names of several.
        logs: folder for what the jobs print.
        options: further options of sbatch, as "--mem=64G".

    Raises:
        ValueError: a number that is not positive, or a time or an option that is none.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    array: int | None = None
    time: str = ""
    partition: str = ""
    account: str = ""
    notice: int = 120
    restarts: int = 10
    name: str = "scaling"
    logs: Path = Path("slurm")
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what in ("nodes", "cpus_per_task", "array", "notice"):
            if (value := getattr(self, what)) is not None and value < 1:
                raise ValueError(f"Slurm: {what} is {value} and must be at least 1")
        if self.time and not re.fullmatch(_TIME, self.time):
            raise ValueError(f"Slurm: {self.time!r} is no time; those are written 90 (minutes), 12:00:00 or 2-00:00:00")
        if self.restarts < 0:
            raise ValueError(f"Slurm: restarts is {self.restarts}, and cannot be less than none")
        if wrong := [option for option in self.options if not option.startswith("-")]:
            raise ValueError(f"Slurm: {wrong[0]!r} is no option of sbatch, which begin with a dash: --mem=64G")

    def scripts(self, command: Sequence[str]) -> list[Script]:
        """The jobs of a command, in the order of their submission.

        Args:
            command: arguments of `scaling`: train or sweep with its options.

        Raises:
            ValueError: an array of anything but a sweep.
        """
        if command[0] != "sweep":
            if self.array is not None:
                raise ValueError(f"an array shares the cells of a sweep, and this is {command[0]}; leave --array out")
            return [Script(name=self.name, text=self._text(self.name, command, nodes=self.nodes))]
        tasks = self.array or self.nodes
        array = f"0-{tasks - 1}" + (f"%{self.nodes}" if self.nodes < tasks else "")
        rows, cells, report = (f"{self.name}-{part}" for part in ("rows", "cells", "report"))
        share = f'--share "$SLURM_ARRAY_TASK_ID/{tasks}"'
        return [
            Script(name=rows, text=self._text(rows, [*command, "--dry-run"])),
            Script(name=cells, text=self._text(cells, command, share=share, array=array), after=("afterok", rows)),
            Script(name=report, text=self._text(report, command), after=("afterany", cells)),
        ]

    def submit(self, command: Sequence[str]) -> dict[str, str]:
        """Submits the jobs and returns their ids by name.

        Raises:
            ValueError: as `scripts`.
            OSError: sbatch is not here, or refuses; the message is its own.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        submitted: dict[str, str] = {}
        for script in self.scripts(command):
            arguments = ["sbatch", "--parsable"]
            if script.after:
                how, before = script.after
                arguments += [f"--dependency={how}:{submitted[before]}", "--kill-on-invalid-dep=yes"]
            try:
                done = subprocess.run(arguments, input=script.text, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise OSError(
                    "sbatch is not on this machine; --dry-run shows the scripts to submit elsewhere"
                ) from None
            if done.returncode:
                raise OSError(f"{script.name} was not submitted: {' '.join(done.stderr.split())}")
            submitted[script.name] = done.stdout.strip().partition(";")[0]
        return submitted

    def _text(
        self, name: str, command: Sequence[str], *, nodes: int = 1, share: str = "", array: str | None = None
    ) -> str:
        options = {
            "job-name": name,
            "nodes": nodes,
            "ntasks-per-node": max(1, self.gpus_per_node if command[0] == "train" else 1),
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-node": self.gpus_per_node or None,
            "array": array,
            "time": self.time or None,
            "partition": self.partition or None,
            "account": self.account or None,
            "chdir": os.getcwd(),
            "output": self.logs.absolute() / ("%x-%A_%a.out" if array else "%x-%j.out"),
            "open-mode": "append",
            "signal": f"B:USR1@{self.notice}",
        }
        given = [f"--{option}={value}" for option, value in options.items() if value is not None]
        directives = "\n".join(f"#SBATCH {option}" for option in [*given, "--requeue", *self.options])
        cores = f" --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task else ""
        scaling = shlex.join([sys.executable, "-m", "experiments.cli", *command])
        settings = {"restarts": self.restarts, "again": AGAIN, "stopped": STOPPED}
        return _SCRIPT.format(directives=directives, cores=cores, command=f"{scaling} {share}".rstrip(), **settings)


_TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|(?i:infinite|unlimited)"

_SCRIPT = """\
#!/bin/bash
{directives}

# USR1 is Slurm's notice that the time is nearly up, or of a preemption: the run saves, and this script queues it again.
# TERM is the end: the run saves too; whether it is queued again is for Slurm to say, once it has killed this script.
# The step is signalled: srun would leave its tasks KillWait seconds, and the job is refused while Slurm preempts it.
asked=
stop() {{ asked=$1; timeout 60 scancel --quiet --signal=TERM "$SLURM_JOB_ID.0" & }}
trap 'stop notice' USR1
trap 'stop end' TERM

srun --kill-on-bad-exit=1{cores} {command} </dev/null &
run=$!
while :; do  # a signal ends a wait
  wait "$run"; status=$?
  kill -0 "$run" 2>/dev/null || break
done

if [ "$asked" = notice ] && [ "$status" != 0 ]; then
  echo "stopped with notice; to be queued again"
  scontrol requeue "$SLURM_JOB_ID" || sleep 300  # refused where Slurm is about to do it itself
elif [ "$status" = {again} ] && {{ [ "$SECONDS" -gt 600 ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; }}; then
  echo "lost what may be there again; to be queued again"
  scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" = {stopped} ]; then
  sleep 300  # stopped by Slurm, which is about to kill this script
fi
exit "$status"
"""
