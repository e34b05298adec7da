"""Where and how a run is computed, and whether it can be."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh

from experiments.objectives import Prefixed
from experiments.runs import Run
from models.execution import Dispatch, Execution, Kernel, Layers, Precision, Products, Remat
from models.kernels import misfit
from models.rules import Stream, fitting_context, rules_for
from parallel.context import Context
from parallel.flags import Flags
from parallel.mesh import MeshShape
from parallel.pipeline import Pipeline
from parallel.sharding import Rules


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where and how a step is computed. None of it is part of a run's identity.

    Attributes:
        mesh: devices along each axis, as in "fsdp=4,tensor=2"; -1 is what is left, and empty all devices on `data`.
            Axes: replica (copies far apart), pipeline (stages), data (copies), fsdp (shards of parameters), expert (of
            experts), sequence (of rows) and tensor (of heads and hidden units).
        accumulate: parts that each batch is computed in, one after another, to save memory.
        layers: loop over blocks, or write them out; None for what is faster on the platform.
        remat: what is saved for the backward pass.
        kernel: attention implementation; None for the fastest on the platform.
        context: how attention reaches across devices, where the mesh splits rows (axis `sequence`): heads exchanged for
            length, or keys and values passed round a ring; None for the former where heads divide.
        stream: what tensor shards hold of the residual stream between layers: all, or a part of its length each.
        logits_chunk: positions whose logits exist at a time; None for all of them.
        dispatch: how tokens reach experts; None for what suits the platform and the architecture. `exchange` sends less
            than `ragged`, and rearranges more: it is for eight devices or more on the mesh's axis `expert`.
        microbatches: parts of a batch that follow one another through the stages of the mesh's axis `pipeline`; None
            for four a stage, or as many as there are rows for.
        rounds: how often each goes through all stages, for shorter bubbles.
        flags: bundles of options for the compiler (`parallel.flags`).
    """

    mesh: str = ""
    accumulate: int = 1
    layers: Layers | None = None
    remat: Remat = Remat.NONE
    kernel: Kernel | None = None
    context: Context | None = None
    stream: Stream = Stream.WHOLE
    logits_chunk: int | None = None
    dispatch: Dispatch | None = None
    microbatches: int | None = None
    rounds: int = 1
    flags: tuple[Flags, ...] = ()

    def __post_init__(self) -> None:
        MeshShape.parse(self.mesh)  # a mistyped axis is told before anything is read, or submitted

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh of these devices, or of all there are.

        Raises:
            ValueError: if they are not as many; where there is but a CPU, it says how to imitate more.
        """
        shape = MeshShape.parse(self.mesh)
        try:
            return shape.build(devices)
        except ValueError as error:
            wanted, found = shape.devices or 0, jax.devices() if devices is None else devices
            if wanted <= len(found) or found[0].platform != "cpu" or jax.process_count() > 1:
                raise
            command = f"scaling launch local --processes 1 --devices {wanted} -- train ..."
            raise ValueError(f"{error}; to try it on this machine: {command}") from None

    def execution(self, run: Run, mesh: Mesh | AbstractMesh, *, platform: str | None = None) -> Execution:
        """How to compute the run's architecture on a mesh; `platform` is that of a mesh without devices."""
        platform = platform or mesh.devices.flat[0].platform
        if self.kernel is Kernel.SPLASH and platform != "tpu":
            raise ValueError(f"attention kernel 'splash' is for TPUs, and the mesh is of {platform} devices")
        rules = rules_for(run.architecture, mesh, self.stream)
        check_length(run, mesh, rules)
        context = self.context or fitting_context(run.architecture, mesh, rules)
        ring = rules.length and context is Context.RING
        if ring and self.kernel not in (None, Kernel.BLOCKS, Kernel.DENSE):
            raise ValueError(f"ring attention is not computed by the kernel '{self.kernel.value}', only by XLA")
        pipeline = self._pipeline(run, mesh, rules)
        return Execution(
            rules=rules,
            precision=run.precision,
            # A stage's products are of many microbatches at once, which cannot be laid flat.
            products=Products.FLAT if platform == "cpu" and not pipeline else Products.WHOLE,
            layers=self.layers or (Layers.UNROLL if platform == "cpu" else Layers.SCAN),
            remat=self.remat,
            kernel=self.kernel or (Kernel.BLOCKS if ring else self._fastest(run, platform)),
            context=context,
            logits_chunk=self.logits_chunk,
            dispatch=self.dispatch or (Dispatch.RAGGED if platform == "tpu" and not pipeline else None),
            pipeline=pipeline,
        )

    def _pipeline(self, run: Run, mesh: Mesh | AbstractMesh, rules: Rules) -> Pipeline | None:
        """How batches go through the stages of a mesh; None where it has one stage."""
        stages = mesh.shape["pipeline"]
        if stages == 1:
            if self.microbatches is not None or self.rounds > 1:
                raise ValueError("microbatches and rounds are of a pipeline; the mesh has none, as in 'pipeline=4'")
            return None
        if self.microbatches is not None:
            return Pipeline(microbatches=self.microbatches, rounds=self.rounds)
        return Pipeline.fitting(run.batch // (self.accumulate * rules.shards("batch", mesh)), stages, self.rounds)

    def _fastest(self, run: Run, platform: str) -> Kernel:
        """The fused kernel of the platform where it can do all that the run asks."""
        kernel = {"gpu": Kernel.CUDNN, "cuda": Kernel.CUDNN, "tpu": Kernel.SPLASH}.get(platform, Kernel.BLOCKS)
        lengths = run.objective.lengths(run.data.length)
        fits = kernel is not Kernel.CUDNN or run.precision is Precision.BFLOAT16
        fits = fits and not any(misfit(kernel, each, *lengths) for each in run.architecture.attentions)
        fits = fits and not any(stack.relative for stack in run.architecture.stacks)
        return kernel if fits and not isinstance(run.objective, Prefixed) else Kernel.BLOCKS


@dataclass(frozen=True, kw_only=True)
class Placement(Layout):
    """Where and how a run is computed, and what is kept of it meanwhile. None of it is part of the run's identity.

    Attributes:
        steps_per_call: most steps in one call of the compiled program; None for about a second of work.
        checkpoint_seconds: time between checkpoints.
        checkpoint_steps: fewest steps between checkpoints, in place of a time.
        checkpoints: how many to keep.
        patience: seconds without a step after which a process of several gives itself, and so the run, up.
        tensorboard: also write metrics for TensorBoard (extra `tensorboard`).
    """

    steps_per_call: int | None = None
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int | None = None
    checkpoints: int = 2
    patience: float = 1800.0
    tensorboard: bool = False


def check_batch(batch: int, parts: int, mesh: Mesh, rules: Rules) -> None:
    """Raises ValueError unless the batch divides into parts, and each part over the devices that read rows."""
    shards = rules.shards("batch", mesh)
    if parts < 1 or batch % (parts * shards):
        axes = " x ".join(axis for axis in rules.batch if mesh.shape[axis] > 1)
        each = f"{shards} devices" + (f" ({axes})" if axes else "") + (f" x {parts} parts" if parts != 1 else "")
        raise ValueError(
            f"a batch of {batch} rows cannot be shared equally by {each}; choose a multiple of {parts * shards}"
        )


def check_length(run: Run, mesh: Mesh | AbstractMesh, rules: Rules) -> None:
    """Raises ValueError unless every row that a stack reads divides over the devices that share it."""
    shards, asked = rules.shards("stream", mesh), run.objective.lengths
    if all(length % shards == 0 for length in asked(run.data.length)):
        return

    def fits(length: int) -> bool:
        try:
            return all(each % shards == 0 for each in asked(length))
        except ValueError:
            return False

    over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.stream)
    near = next((length for length in range(run.data.length, run.data.length + 64 * shards) if fits(length)), None)
    raise ValueError(
        f"rows of {' and '.join(map(str, asked(run.data.length)))} tokens cannot be split over {over}"
        + (f"; with a row length of {near} they can" if near else "")
    )
