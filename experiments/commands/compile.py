"""`scaling compile`: what a model's train step needs and takes on devices that are not here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import ModelOptions
from experiments.objectives.example import Sides
from experiments.objectives.named import USUAL, Name, named
from models.execution import Kernel, Precision, Remat

if TYPE_CHECKING:
    from parallel.ahead import Estimate


@dataclass(frozen=True, kw_only=True)
class _Ids:
    """Those of a tokenizer that is not there: only their number matters to a program."""

    vocab: int
    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3

    @property
    def extra(self) -> int:
        return self.vocab // 4


@dataclass(frozen=True, kw_only=True)
class Command:
    """Compile the train step of a model for a TPU slice that is not here: does it fit, how long would a step take?

    The TPU's own compiler does it on this machine's CPU, in about a minute (extra `tpu`: pip install
    'scaling-experiments[tpu]'). A topology of CPU devices compiles too, and shows memory and collectives.

        scaling compile --topology v5p:4x4x8 --model.family llama --model.params 7e9 --length 4096 --mesh fsdp=128
        scaling compile --topology v5e:4x4 --model.params 4e8 --mesh fsdp=8,tensor=2 --json
        scaling compile --topology cpu:8 --model.params 1e6 --length 256 --mesh fsdp=4,tensor=2
    """

    topology: str
    """Generation (v4, v5e, v5p, v6e) and chips along each dimension of its network; or cpu:8."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(family="llama"))
    objective: tyro.conf.EnumChoicesFromValues[Name] | None = None
    """What is predicted; by default causal for a decoder, masked for an encoder, span-corruption for both."""
    mesh: str = ""
    """Devices along each axis, as in "fsdp=64,tensor=2"; by default all on fsdp."""
    length: int = 2048
    """Tokens in a row."""
    vocab: int = 32_000
    """Vocabulary."""
    batch: int | None = None
    """Rows per step, on all chips; one for each chip by default."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another."""
    remat: Remat = Remat.FULL
    """What is saved for the backward pass."""
    kernel: Kernel | None = None
    """Attention implementation."""
    logits_chunk: int | None = None
    """Positions whose logits exist at a time; None for all."""
    precision: Precision = Precision.BFLOAT16
    """Type of activations."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def __call__(self) -> int:
        """Compiles and prints."""
        import os

        from parallel.ahead import Topology

        topology = Topology.parse(self.topology)
        if topology.generation == "cpu":
            from experiments.launch.environment import restart_for_cpu

            restart_for_cpu(devices=topology.chips)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed: do not wait for an accelerator
        from rich.console import Console

        from experiments.ahead import compile_step
        from experiments.data.prepare import DataConfig
        from experiments.optimizer import Schedule
        from experiments.runs import Run
        from experiments.train import Placement

        architecture = self.model.build(self.vocab, self.length)
        run = Run(
            architecture=architecture, data=DataConfig(length=self.length), rows="", schedule=Schedule(),
            objective=named(self.objective or USUAL[Sides.of(architecture)], _Ids(vocab=self.vocab)),
            batch=self.batch or topology.chips, steps=1, precision=self.precision,
        )  # fmt: skip
        placement = Placement(
            mesh=self.mesh or f"fsdp={topology.chips}", accumulate=self.accumulate, remat=self.remat,
            kernel=self.kernel, logits_chunk=self.logits_chunk,
        )  # fmt: skip
        console = Console(stderr=self.json)
        with console.status(f"compiling for {topology}"):
            found = compile_step(run, placement, topology)
        if self.json:
            print(json.dumps(found.to_dict(), indent=2))
        else:
            _print(console, run, found)
        return 0 if found.fits is not False else 1


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
        console.print(
            f"DOES NOT FIT: {_gib(found.memory_needed)} a chip{limit}. More shards (fsdp, tensor), fewer rows a chip, "
            "--accumulate or a fuller --remat need less.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
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
    console.print(f"compiled in {found.compile_seconds:.0f} s", highlight=False)


def _gib(size: float) -> str:
    """Bytes in a unit that leaves a readable number."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
