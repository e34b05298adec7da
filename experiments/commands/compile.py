"""`scaling compile`: what a model's train step needs and takes on devices that are not here."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import ModelOptions
from experiments.objectives.example import Sides
from experiments.objectives.named import USUAL, Name, named
from experiments.placement import Layout
from models.execution import Precision, Remat

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.layouts import Layouts
    from parallel.estimate import Estimate
    from parallel.search import Candidate, Found

WIDE = 120  # of what is written to a file or a pipe
SHOWN = 12  # layouts in the table of a search


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Those of a tokenizer that is not there: only their number matters to a program."""

    vocab: int
    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3

    @property
    def extra(self) -> int:
        """Ids that objectives may reserve."""
        return self.vocab // 4


@dataclass(frozen=True, kw_only=True)
class Command:
    """Compile the train step of a model for a TPU slice that is not here: does it fit, how long would a step take?

    The TPU's own compiler does it on this machine's CPU, in about a minute (extra `tpu`: pip install
    'scaling-experiments[tpu]'). A topology of CPU devices compiles too, and shows memory and collectives. GPUs are
    compiled for where they are; of those elsewhere arithmetic speaks, whose constants were set by what TPUs do.

        scaling compile --topology v5p:4x4x8 --model.family llama --model.params 7e9 --length 4096 --mesh fsdp=128
        scaling compile --topology v5e:4x4 --model.params 4e8 --mesh fsdp=8,tensor=2 --json
        scaling compile --topology cpu:8 --model.params 1e6 --length 256 --mesh fsdp=4,tensor=2
        scaling compile --topology h100:4x8 --model.params 7e9 --length 4096 --mesh fsdp=32
        scaling compile --topology v5p:4x4x4 --model.family llama --model.params 7e9 --batch 256 --search

    A search considers every mesh of data, fsdp and tensor shards, every --remat and every number of parts by
    arithmetic, asks the compiler about the fastest few, and says why the others lose. It also spreads experts where
    there are some, rows and stages of layers where rows are fewer than chips, and stages over nodes of GPUs.
    """

    topology: str
    """Generation (v4, v5e, v5p, v6e) and chips along each dimension of its network; h100:8, h100:4x8; or cpu:8."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(family="llama"))
    objective: tyro.conf.EnumChoicesFromValues[Name] | None = None
    """What is predicted; by default causal for a decoder, masked for an encoder, span-corruption for both."""
    layout: Annotated[Layout, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Layout(mesh="fsdp=-1", remat=Remat.FULL)
    )
    length: int = 2048
    """Tokens in a row."""
    vocab: int = 32_000
    """Vocabulary."""
    batch: int | None = None
    """Rows per step, on all chips; one for each chip by default."""
    precision: Precision | None = None
    """Type of activations; by default what is fast there: bfloat16, on a CPU float32."""
    search: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Find the fastest layout that fits; --mesh, --accumulate and --remat are then not given."""
    compiled: int = 4
    """Layouts of a search that the compiler is asked about, first the most promising with each --remat."""
    memory: float | None = None
    """GiB of memory to use on a chip in a search; by default all that it has."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def __call__(self) -> int:
        """Compiles and prints."""
        import os

        import jax

        from parallel.topology import Topology

        topology = Topology.parse(self.topology)
        if topology.generation == "cpu":
            from experiments.launch.environment import restart_for_cpu

            restart_for_cpu(devices=topology.chips)
        if topology.platform != "gpu" and "JAX_PLATFORMS" not in os.environ:
            jax.config.update("jax_platforms", "cpu")  # nothing is computed: do not wait for an accelerator
        if topology.platform == "tpu":
            jax.config.update("jax_enable_compilation_cache", False)  # it cannot load such programs
        from rich.console import Console

        from experiments.data.packed import DataConfig
        from experiments.layouts import Layouts
        from experiments.optimizer import Schedule
        from experiments.runs import Run

        architecture = self.model.build(self.vocab, self.length)
        fast = Precision.FLOAT32 if topology.platform == "cpu" else Precision.BFLOAT16
        run = Run(
            architecture=architecture, data=DataConfig(length=self.length), rows="", schedule=Schedule(),
            objective=named(self.objective or USUAL[Sides.of(architecture)], Ids(vocab=self.vocab)),
            batch=self.batch or topology.chips, steps=1, precision=self.precision or fast,
        )  # fmt: skip
        layouts = Layouts(run, topology, self.layout)
        console = Console(stderr=self.json, width=None if sys.stdout.isatty() else WIDE)
        return self._search(layouts, console) if self.search else self._compile(layouts, console)

    def _compile(self, layouts: Layouts, console: Console) -> int:
        """One layout."""
        with console.status(f"compiling for {layouts.topology}"):
            found = layouts.compile(layouts.layout)
        if self.json:
            print(json.dumps(found.to_dict(), indent=2))
        else:
            _print(console, layouts.run, found)
        if found.fits is False:
            console.print(suggestions(layouts), highlight=False, soft_wrap=True)
        return 1 if found.fits is False else 0

    def _search(self, layouts: Layouts, console: Console) -> int:
        """All layouts."""
        limit = None if self.memory is None else self.memory * 2**30
        with console.status("tracing") as status:
            found = layouts.search(
                compiled=self.compiled, limit=limit,
                report=lambda each: status.update(f"compiling {each.mesh}, remat {each.remat.value}"),
            )  # fmt: skip
        if self.json:
            print(json.dumps(_to_dict(found), indent=2))
        else:
            _print_search(console, layouts, found)
        if found.best is None:
            console.print(suggestions(layouts), highlight=False, soft_wrap=True)
        return 0 if found.best else 1


def _print(console, run, found: Estimate) -> None:
    from dataclasses import asdict

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    mesh = ",".join(f"{name}={size}" for name, size in found.mesh.items())
    console.print(
        f"{run.architecture.family}, {run.cost.params:,} parameters, {run.batch} rows of {run.data.length} tokens; "
        f"{found.topology}, {found.chips} chips, mesh {mesh}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    limit = f" of {_gib(found.memory_limit)}" if found.memory_limit else ""
    if found.memory is None:
        console.print(f"DOES NOT FIT: {_gib(found.memory_needed)} a chip{limit}", highlight=False, soft_wrap=True)
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in asdict(found.memory).items())
    fits = {True: "fits: ", False: "DOES NOT FIT: ", None: ""}[found.fits]
    console.print(f"{fits}{_gib(found.memory_needed)} a chip{limit} ({parts})", highlight=False, soft_wrap=True)
    if found.step_seconds is not None:
        console.print(
            f"step at least {found.step_seconds:.3g} s (computing {found.compute_seconds:.3g}, network "
            f"{found.network_seconds:.3g} if all links are full), MFU at most {found.mfu:.2f}: {found.verdict}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("collective", "mesh axes", "count", "sent by a chip"):
        table.add_column(heading, justify="left" if heading in ("collective", "mesh axes") else "right")
    for each in found.collectives:
        table.add_row(each.kind, ", ".join(each.axes), f"{each.count:,}", _gib(each.bytes))
    console.print(table)
    by = "by arithmetic" if found.compile_seconds is None else f"compiled in {found.compile_seconds:.0f} s"
    console.print(by, highlight=False)


def _flags(layout: Layout) -> str:
    """The options that make a layout."""
    parts = f" --accumulate {layout.accumulate}" if layout.accumulate > 1 else ""
    rounds = f" --rounds {layout.rounds}" if layout.rounds > 1 else ""
    return f"--mesh {layout.mesh} --remat {layout.remat.value}{parts}{rounds}"


def _mesh(layout: Layout) -> str:
    """Its mesh, and how often a microbatch goes through its stages if that is several times."""
    return f"{layout.mesh} x{layout.rounds}" if layout.rounds > 1 else layout.mesh


def suggestions(layouts: Layouts) -> str:
    """Layouts that would fit where one does not."""
    found = layouts.search(compiled=0)
    fitting = [each for each in found.candidates if each.fits(found.limit)]
    if fitting:
        named = "; ".join(
            f"{_flags(each.layout)} ({_gib(each.predicted.memory_needed)} a chip)" for each in fitting[:3]
        )
        return f"by arithmetic these fit: {named}"
    least = min(each.predicted.memory_needed for each in found.candidates)
    chips = math.ceil(layouts.topology.chips * least / found.limit)
    return (
        f"nothing fits {layouts.topology}: the smallest layout needs {_gib(least)} a chip; take about {chips:,} chips, "
        "a smaller model, or fewer or shorter rows"
    )


def _to_dict(found: Found) -> dict:
    best = found.best
    return {
        "tried": found.tried,
        "limit_bytes": found.limit,
        "best": best and _flags(best.layout),
        "candidates": [
            {
                "mesh": each.layout.mesh,
                "remat": each.layout.remat.value,
                "accumulate": each.layout.accumulate,
                "rounds": each.layout.rounds,
                "fits": each.fits(found.limit),
                "reason": found.reason(each),
                "predicted": each.predicted.to_dict(),
                "compiled": each.compiled and each.compiled.to_dict(),
            }
            for each in found.candidates
        ],
    }


def _telling(found: Found) -> list[Candidate[Layout]]:
    """Those compiled, the first with each policy, and the first with each mesh, as far as there is room."""
    told = [each for each in found.candidates if each.compiled]
    for same in (lambda each: each.layout.remat, lambda each: each.layout.mesh):
        firsts = {same(each): each for each in reversed(found.candidates)}
        told += [each for each in found.candidates if each is firsts[same(each)] and each not in told]
    return [each for each in found.candidates if each in told[:SHOWN]]


def _print_search(console, layouts: Layouts, found: Found) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    run, topology = layouts.run, layouts.topology
    has = f" of {_gib(found.limit)}" if found.limit else ""
    console.print(
        f"{run.architecture.family}, {run.cost.params:,} parameters, {run.batch} rows of {run.data.length} tokens; "
        f"{topology}, {topology.chips} chips{has}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    left = ("mesh", "remat", "by", "why")
    for heading in ("mesh", "remat", "parts", "a chip", "step s", "MFU", "by", "why"):
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=heading == "mesh")
    for each in _telling(found):
        said = each.estimate
        table.add_row(
            _mesh(each.layout), each.layout.remat.value, str(each.layout.accumulate), _gib(said.memory_needed),
            f"{each.seconds:.3g}", f"{said.mfu:.2f}" if said.mfu else "", "compiler" if each.compiled else "arithmetic",
            found.reason(each) if found.best else "",
        )  # fmt: skip
    table.caption = (
        f"{found.tried:,} layouts considered. Of those that differ in parts of the batch alone the first that fits "
        f"stands for all: {len(found.candidates):,}, of which the telling ones are shown."
    )
    if len({each.compiled is None for each in found.candidates}) > 1:
        table.caption += (
            " The compiler's seconds are not to be compared with those of arithmetic; a reason compares like with like."
        )
    console.print(table)
    if found.best:
        console.print(f"take {_flags(found.best.layout)}", highlight=False, soft_wrap=True)


def _gib(size: float) -> str:
    """Bytes in a unit that leaves a readable number."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
