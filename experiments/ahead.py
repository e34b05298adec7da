"""What a run's step would need and take on devices that are not here."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp

from experiments.objectives import row_keys
from experiments.placement import Layout, check_batch
from experiments.runs import Run
from experiments.train import Recipe, advancing, initial_state
from models.execution import Execution, Kernel, Remat
from models.experts import OF_RUNS, Experts
from models.pair import Pair
from models.transformer import Model
from parallel.ahead import estimate
from parallel.estimate import Estimate
from parallel.mesh import MeshShape
from parallel.sharding import abstract
from parallel.topology import Topology


def compile_step(run: Run, layout: Layout, topology: Topology) -> Estimate:
    """Compiles the step of a run, as the trainer would run it, for a topology.

    Raises:
        ValueError: a mesh that does not fit the topology, the batch or the architecture; or a topology that cannot be
            compiled for here.
    """
    mesh = MeshShape.parse(layout.mesh).build(topology.devices())
    with jax.set_mesh(mesh):
        execution = layout.execution(run, mesh)
        rules, parts = execution.rules, layout.accumulate
        check_batch(run.batch, parts * execution.microbatches, mesh, rules)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = abstract(partial(initial_state, run=run, execution=execution), mesh, rules, key)

        def rows(*steps: int) -> jax.ShapeDtypeStruct:
            spec = rules.spec(*(None for _ in steps), "batch", None)
            shape = (*steps, run.batch // parts, run.data.length + 1)
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=jax.NamedSharding(mesh, spec))

        saved = residuals(run, state.model, rows(), key)

        def lower():
            one = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
            step = advancing(layout.flags, mesh.devices.flat[0].platform)
            return step.lower(state, rows(1, parts), *one, key, recipe=Recipe(run.objective, run.optimizer))

    return estimate(
        lower, mesh, topology, parameters=state.model, optimizer=state.optimizer, residuals=saved,
        flops=run.cost.flops_per_token * run.batch_tokens, kernel_flops=_kernel_flops(run, execution),
    )  # fmt: skip


def _kernel_flops(run: Run, execution: Execution) -> float:
    """FLOPs of fused kernels in a step, on all chips: of attention, and of products of runs by experts."""
    flops = 0.0
    if execution.kernel is Kernel.SPLASH:
        # The backward pass takes five products for the forward pass's two (Dao et al. 2022, appendix B), and remat runs
        # the forward pass again unless it saves the kernel's output.
        again = execution.remat in (Remat.FULL, Remat.DOTS)
        flops += run.cost.attention_flops * run.batch_tokens * (3.5 + again)
    if execution.dispatch in OF_RUNS:
        sides = run.architecture.sides if isinstance(run.architecture, Pair) else (run.architecture,)
        stacks = [(side.width, stack) for side in sides for stack in side.stacks]
        # All but the last of them again: by every remat, and where runs are computed in blocks.
        again = execution.remat is not Remat.NONE or bool(execution.rules.expert)
        for (width, stack), places in zip(stacks, run.places, strict=True):
            for block, uses in zip(stack.pattern, stack.uses, strict=True):
                if isinstance(part := block.feedforward, Experts):
                    products = part.mlp.cost(width, places).matmul_flops
                    products = 3 * products + again * (products - 2 * width * part.hidden)
                    flops += products * part.chosen * uses * places * run.batch
    return flops


def residuals(
    run: Run, model: Model, rows: jax.ShapeDtypeStruct, key: jax.ShapeDtypeStruct
) -> list[jax.ShapeDtypeStruct]:
    """What the forward pass of one part saves for the backward pass, parameters at rest aside.

    Masks are left out: the compiler makes them again from the counting and comparing that they are.

    Args:
        run: says what is asked of the model.
        model: shapes and shardings of its parameters.
        rows: `batch length+1`.
        key: any.
    """

    def forward(model, rows, key):
        def total(model):
            losses, _ = run.objective.losses(model, rows, row_keys(key, jnp.arange(rows.shape[0])), dropout=key)
            return losses.sum()

        return jax.vjp(total, model)[1]

    held = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(model))
    found = []
    for leaf in jax.tree.leaves(jax.eval_shape(forward, model, rows, key)):
        if held[leaf.shape, leaf.dtype]:
            held[leaf.shape, leaf.dtype] -= 1
        elif leaf.dtype != jnp.bool_:
            found.append(leaf)
    return found
