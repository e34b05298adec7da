"""Where a run could be computed: which layouts there are, what is said of each, which suits a topology."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from experiments.ahead import compile_step
from experiments.placement import Layout
from experiments.runs import Run
from experiments.traces import abstract_mesh, traceable
from experiments.work import Numbers
from models.execution import Remat
from parallel.analytic import Work, predict
from parallel.estimate import Estimate
from parallel.mesh import AXES, MeshShape
from parallel.search import Found, meshes, search
from parallel.topology import Topology

SEARCHED = ("data", "fsdp", "tensor")
"""Mesh axes that are always searched over.

So is `expert` where there are experts; `sequence` and `pipeline` where rows are fewer than chips; and `pipeline` where
a slow network lies between nodes.
"""

ROUNDS = (1, 2, 4)
"""How often a microbatch may go through all stages of a pipeline."""


@dataclass(frozen=True)
class Layouts:
    """A run's step on a topology, in any layout.

    Attributes:
        run: the run.
        topology: where.
        layout: what all layouts share: kernel, chunks of logits.
    """

    run: Run
    topology: Topology
    layout: Layout
    _compiled: dict[Layout, Estimate] = field(default_factory=dict, compare=False, repr=False)

    def predict(self, layout: Layout) -> Estimate:
        """What arithmetic says of a layout.

        Raises:
            ValueError: if mesh, batch or architecture do not fit each other.
        """
        sizes = self._sizes(layout)
        work = self._work(layout, sizes)
        if lacking := next(filter(None, (weight.misfit(sizes) for weight in work.weights)), ""):
            raise ValueError(f"mesh {layout.mesh}: {lacking}")
        if work.pipeline:
            readers = math.prod(sizes[name] for name in ("replica", "data", "fsdp", "expert"))
            rows = self.run.batch // (layout.accumulate * readers)
            for stack in self.run.architecture.stacks:
                work.pipeline.check(stages=sizes["pipeline"], layers=stack.repeats, rows=rows)
        told = dict(topology=self.topology, mesh=sizes, rows=self.run.batch, parts=layout.accumulate)
        return predict(work, **told)

    def compile(self, layout: Layout) -> Estimate:
        """What the compiler says of it, asked once; of GPUs elsewhere arithmetic says it.

        A GPU's compiler counts no cycles: how long it computes is then by arithmetic too.
        """
        if not self.topology.present:
            return self.predict(layout)
        if layout not in self._compiled:
            said = compile_step(self.run, layout, self.topology)
            if self.topology.platform == "gpu" and said.memory:
                said = replace(said, compute_seconds=self.predict(layout).compute_seconds)
            self._compiled[layout] = said
        return self._compiled[layout]

    def all(self, remats: Sequence[Remat] = tuple(Remat)) -> Iterator[Layout]:
        """Every mesh that the batch and the architecture allow, with every policy, number of parts and of rounds.

        Raises:
            ValueError: if there is none.
        """
        found, refused = False, ""
        few, routed = self.run.batch < self.topology.chips, self.run.architecture.routed
        nodes = self.topology.shape[0] if self.topology.platform == "gpu" and len(self.topology.shape) > 1 else 1
        helpful = {"pipeline": few or nodes > 1, "expert": routed, "sequence": few}
        for sizes in meshes(self.topology.chips, (*SEARCHED, *(name for name, helps in helpful.items() if helps))):
            readers = sizes["data"] * sizes["fsdp"] * sizes.get("expert", 1)
            if self.run.batch % readers:
                continue
            stages = sizes.get("pipeline", 1)
            for rounds in ROUNDS if stages > 1 else ROUNDS[:1]:
                layout = replace(self.layout, mesh=str(MeshShape(**sizes)), rounds=rounds)
                try:
                    self.predict(replace(layout, accumulate=1, remat=remats[-1]))
                except ValueError as reason:
                    refused = f": {reason}"
                    continue
                found = True
                for remat in remats:
                    parts = 1
                    while self.run.batch % (parts * readers * (stages if rounds > 1 else 1)) == 0:
                        yield replace(layout, accumulate=parts, remat=remat)
                        parts *= 2
        if not found:
            raise ValueError(f"no mesh of {self.topology.chips} chips suits {self.run.batch} rows{refused}")

    def search(
        self, *, compiled: int, limit: float | None = None, report: Callable[[Layout], None] = lambda layout: None
    ) -> Found[Layout]:
        """The fastest layout that fits.

        Args:
            compiled: how many of those that fit to ask the compiler about.
            limit: bytes to use on a chip; None for all that it has.
            report: told what is compiled next.

        Raises:
            ValueError: if no mesh suits the batch and the architecture.
        """
        if limit is None and self.topology.platform != "cpu":
            limit = self.topology.chip.memory_bytes
        told = dict(limit=limit, most=compiled if self.topology.present else 0, report=report)
        return search(
            self.all(),
            self.predict,
            self.compile,
            key=lambda each: (each.mesh, each.rounds, each.remat),
            kind=lambda each: each.remat,
            **told,
        )

    def _sizes(self, layout: Layout) -> dict[str, int]:
        shape = MeshShape.parse(layout.mesh).resolve(self.topology.chips)
        return {name: getattr(shape, name) for name in AXES}

    @cached_property
    def _numbers(self) -> Numbers:
        # cuDNN's kernel is traced beside GPUs only.
        return Numbers(self.run, None if self.topology.present else traceable(self.run))

    def _work(self, layout: Layout, sizes: Mapping[str, int]) -> Work:
        execution = layout.execution(self.run, abstract_mesh(sizes), platform=self.topology.platform)
        return self._numbers.work(execution, sizes)
