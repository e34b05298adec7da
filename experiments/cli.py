"""The command `scaling`: dispatches to one file a subcommand, importing no other."""

import contextlib
import difflib
import importlib
import keyword
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.launch.environment import CACHE

COMMANDS = {
    "quickstart": "train an IsoFLOP sweep on text that every machine has, fit the law, predict a larger run, report",
    "train": "train one model",
    "sweep": "train a ladder of sizes at several compute budgets",
    "launch": "train or sweep elsewhere: in several processes here, by Slurm, on TPU machines, on Kubernetes",
    "fit": "fit a scaling law to a table of runs",
    "approaches": "fit Hoffmann's three approaches side by side, under every convention",
    "audit": "rank laws by how well they predict runs they have not seen",
    "plan": "compute-optimal parameters and tokens of a budget, and which runs to buy next",
    "compare": "say which of two tables of runs is better at a budget, and how surely",
    "plot": "draw the figures of a table of runs",
    "report": "write one HTML file about a table of runs",
    "compile": "say whether a model fits on devices that are not here, and how long its step would take there",
    "evaluate": "loss, perplexity and bits per byte of a trained model; BLEU of its translations",
    "generate": "let a trained model write",
    "import": "make a checkpoint of a folder of the library transformers",
    "export": "write a trained model as a folder that transformers loads",
    "models": "list architectures, their sizes and what they cost",
    "data": "turn text into rows of tokens, or look at rows",
}
FLOORS = ("experiments", "models", "parallel", "scaling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit status: 0, 1 for a mistake of the user (one line), 130 for Ctrl-C.

    203 says that what was in the way may pass, and the same command go on (`parallel.ending`).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"scaling: no subcommand '{name}'; {hint}", file=sys.stderr)
        return 2
    from parallel.ending import FAILED, STOPPED, status_of

    try:
        with _terminated_like_interrupted():
            status = parse(name, rest)()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():  # whoever reads has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            return 0
        status, ours = status_of(error), isinstance(error, ValueError | OSError | RuntimeError) and _is_ours(error)
        if not ours and status == FAILED:
            raise
        if not ours:
            traceback.print_exc()
        lost = "another process, the network or a device was lost; the same command goes on from here"
        print(f"scaling {name}: {error if ours else lost}", file=sys.stderr)
        if "parallel.distributed" in sys.modules:  # else it is one process, and not worth importing JAX
            sys.modules["parallel.distributed"].leave(status)
        return status


def _unread() -> bool:
    """Whether nobody reads what is printed any more; else it is a connection of the network that has broken."""
    printed = select.poll()
    for stream in (1, 2):
        printed.register(stream, 0)
    return any(event & select.POLLERR for _, event in printed.poll(0))


def parse(name: str, arguments: Sequence[str]) -> Callable[[], int]:
    """The subcommand with its options, to be called; ends the program with a message where there is a mistake."""
    import tyro

    os.environ.update(CACHE | os.environ)  # before JAX is imported
    room = f"{name}_" if keyword.iskeyword(name) else name
    command = importlib.import_module(f"experiments.commands.{room}").Command
    if hasattr(command, "check"):
        command.check(arguments)
    config = (tyro.conf.EnumChoicesFromValues, tyro.conf.AvoidSubcommands)
    return tyro.cli(command, prog=f"scaling {name}", args=list(arguments), config=config)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within it SIGTERM, by which clusters ask a program to end, does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by a statement of this project, so that its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(__file__).resolve().parent.parent
    return bool(frames) and any(Path(frames[-1].filename).resolve().is_relative_to(home / floor) for floor in FLOORS)


def _overview() -> str:
    lines = [
        "usage: scaling COMMAND [OPTIONS]",
        "",
        "Train a ladder of models, fit the scaling law, say how sure it is.",
    ]
    lines += ["", "commands:"] + [f"  {name:<11} {what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", "`scaling COMMAND --help` tells more about one."])


if __name__ == "__main__":
    sys.exit(main())
