"""What a forward pass saves, of one row and layer by layer: seen in a trace for a small mesh that is not there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from experiments.ahead import residuals
from experiments.runs import Run
from models.execution import Execution, Kernel
from models.kernels import misfit
from models.pair import Pair
from models.transformer import AnyArchitecture, declare
from parallel.analytic import Split
from parallel.sharding import shardings


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of devices that are not there."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))


@dataclass(frozen=True)
class Residual:
    """An array that the forward pass saves: its first axis, and the rest in numbers; of a row, if it is of rows."""

    first: int
    split: Split
    of_rows: bool
    dtype: jnp.dtype


def traceable(run: Run) -> Kernel:
    """What is traced for cuDNN's kernel, which JAX traces beside GPUs only: splash saves the same."""
    lengths = run.objective.lengths(run.data.length)
    fits = not any(misfit(Kernel.SPLASH, each, *lengths) for each in run.architecture.attentions)
    return Kernel.SPLASH if fits else Kernel.BLOCKS


def told_apart(architecture: AnyArchitecture) -> AnyArchitecture:
    """An encoder-decoder with as many layers on either side gets one more, so that arrays tell which side they are of.

    Arrays of a loop's layers have their number as first axis.
    """
    repeats = [stack.repeats for stack in architecture.stacks]
    if isinstance(architecture, Pair) or len(set(repeats)) == len(repeats):
        return architecture
    return replace(architecture, encoder=replace(architecture.encoder, repeats=repeats[0] + 1))


def saved_of_a_row(run: Run, execution: Execution, mesh: AbstractMesh) -> list[Residual]:
    """What the forward pass saves of one row, seen on a small mesh that is not there."""
    rules, readers = execution.rules, execution.rules.shards("batch", mesh)
    model = declare(run.architecture, execution=execution)
    model = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        model, shardings(model, mesh, rules),
    )  # fmt: skip
    shape, spec = (readers, run.data.length + 1), rules.spec("batch", None)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec))
    found = []
    with jax.sharding.use_abstract_mesh(mesh):
        leaves = residuals(run, model, rows, jax.eval_shape(lambda: jax.random.key(0)))
    for leaf in leaves:
        spec = leaf.sharding.spec if leaf.sharding is not None else ()
        axes = tuple(axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis)
        # Parameters are never split over `data`: what is, is of rows.
        of_rows, size = "data" in axes, float(math.prod(leaf.shape) * leaf.dtype.itemsize)
        first = 0 if not leaf.shape or (spec and spec[0]) else leaf.shape[0]
        found.append(Residual(first, Split(size / readers if of_rows else size, axes), of_rows, leaf.dtype))
    return found
