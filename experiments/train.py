"""The train loop: one run, from its definition to its result, on whatever devices there are.

Resume rules, in this order:

1. a folder with a result is finished, and the result is returned;
2. the newest checkpoint that is good (every leaf's digest agrees) is gone on from;
3. otherwise training begins at step 0.

The step number is the whole position: it decides the rows, the learning rate and the dropout masks, so a run that was
killed anywhere ends in the same bits as one that was not. Steps run several to a call, in a loop whose length is an
argument of the compiled program, so that stopping elsewhere does not change what is compiled.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from experiments.checkpoint import Checkpoints
from experiments.data.batches import Batches, Prefetch
from experiments.data.prepared import Prepared
from experiments.evaluation import evaluate
from experiments.metrics import MetricsLog, window_of
from experiments.objectives import Objective, row_keys
from experiments.optimizer import AdamW
from experiments.placement import Placement, check_batch
from experiments.runs import Run, RunFailed, RunFolder
from models.execution import Execution
from models.layers import initialize
from models.transformer import Model, declare
from parallel.distributed import asked_to_stop, everywhere, from_lead, is_lead, lead_first
from parallel.flags import Flags, compiler_options
from parallel.sharding import abstract, born_sharded
from parallel.watchdog import Watchdog


class Stopped(Exception):
    """The run was asked to stop; what it had done is saved."""


# ---------------------------------------------------------------------------------------------------------------------
# State and step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that a step changes."""

    step: Int[Array, ""]
    model: Model
    optimizer: optax.OptState


@dataclass(frozen=True)
class Recipe:
    """What a compiled step depends on besides its arguments."""

    objective: Objective
    optimizer: AdamW


def initial_state(key: Key[Array, ""], *, run: Run, execution: Execution) -> State:
    """The state before the first step."""
    model = initialize(declare(run.architecture, execution=execution), key, execution.rules)
    return State(jnp.zeros((), jnp.int32), model, run.optimizer.transform().init(model))


ROWS = 2**31 - 1  # what is folded into a step's key for its rows; numbers of parts are folded in for dropout


def loss_and_gradient(
    model: Model, rows: Int[Array, "parts batch length+1"], objective: Objective, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Model]:
    """Mean loss over all predictions of all parts, and its gradient; equal to that of one big batch.

    A row's example is drawn from its place in the whole batch, which parts and meshes do not change; dropout is drawn
    for each part.
    """
    keys = row_keys(jax.random.fold_in(key, ROWS), jnp.arange(rows.shape[0] * rows.shape[1])).reshape(rows.shape[:2])

    def total(model, index, rows, keys):
        losses, weights = objective.losses(model, rows, keys, dropout=jax.random.fold_in(key, index))
        return losses.sum(), weights.sum()

    def add(sums, part):
        (loss, count), gradient = jax.value_and_grad(total, has_aux=True)(model, *part)
        return jax.tree.map(jnp.add, sums, (loss, count, gradient)), None

    if rows.shape[0] == 1:
        (loss, count), gradient = jax.value_and_grad(total, has_aux=True)(model, 0, rows[0], keys[0])
    else:
        zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, model))
        (loss, count, gradient), _ = jax.lax.scan(add, zeros, (jnp.arange(rows.shape[0]), rows, keys))
    count = jnp.maximum(count, 1.0)
    return loss / count, jax.tree.map(lambda leaf: leaf / count, gradient)


def one_step(
    state: State, rows: Int[Array, "parts batch length+1"], rate: Float[Array, ""], key: Key[Array, ""], recipe: Recipe
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One optimizer step; `key` is the run's, from which each step derives its own."""
    loss, gradient = loss_and_gradient(state.model, rows, recipe.objective, jax.random.fold_in(key, state.step))
    updates, optimizer = recipe.optimizer.transform().update(gradient, state.optimizer, state.model)
    model = jax.tree.map(lambda leaf, update: leaf - rate * update, state.model, updates)
    return State(state.step + 1, model, optimizer), {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}


def _advance(
    state: State,
    rows: Int[Array, "steps parts batch length+1"],
    rates: Float[Array, " steps"],
    count: Int[Array, ""],
    key: Key[Array, ""],
    *,
    recipe: Recipe,
) -> tuple[State, dict[str, Float[Array, " steps"]]]:
    """The first `count` of the steps whose rows and rates are given; metrics of the rest are zero."""
    metrics = {name: jnp.zeros(rates.shape) for name in ("loss", "gradient_norm")}

    def body(index, carry):
        state, metrics = carry
        state, measured = one_step(state, rows[index], rates[index], key, recipe)
        return state, {name: metrics[name].at[index].set(measured[name]) for name in metrics}

    return jax.lax.fori_loop(0, count, body, (state, metrics))


@cache
def advancing(flags: tuple[Flags, ...], platform: str) -> Callable:
    """`advance`, with bundles of options for the compiler of a platform.

    Raises:
        ValueError: if a bundle is not for the platform.
    """
    options = compiler_options(flags, platform) or None
    return jax.jit(_advance, static_argnames="recipe", donate_argnames="state", compiler_options=options)


advance = advancing((), "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(
    run: Run,
    folder: RunFolder,
    prepared: Prepared,
    *,
    placement: Placement | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains a run to its end, or goes on with it, or returns the result it already has.

    Args:
        run: what to train.
        folder: where its metrics, checkpoints and result are.
        prepared: the rows whose fingerprint the run names.
        placement: where and how to compute it.
        devices: what to compute on; None for all there are.
        report: called with the progress: step, loss, tokens per second.
        stop: asked between calls; when it says yes, the run is saved and `Stopped` is raised. Many processes must all
            say it at the same call; SIGTERM to any of them is taken care of here.

    Returns:
        The measured columns of the table of runs: loss, loss_se, bits_per_byte, unique_tokens.

    Raises:
        ValueError: if the mesh, the batch or the model do not fit each other or the devices, or the rows are not those
            that the run was begun on.
        RunFailed: if the loss is not finite; the message names the step.
        Stopped: if it was asked to stop.
        OSError: if the folder, or its bucket, cannot be read or written.
    """
    placement = placement or Placement()
    if folder.url and not folder.place.direct and jax.process_count() > 1:
        raise ValueError(
            f"{folder.url}: several processes keep checkpoints in gs://bucket/folder or on a disk that all of them see"
        )
    if is_lead():
        folder.pull()
    if (result := from_lead(folder.result())) is not None:
        return result
    if prepared.fingerprint != run.rows:
        raise ValueError(
            f"run {run.identity} is of rows {run.rows}, and {prepared.folder} holds {prepared.fingerprint}"
        )
    with lead_first("the folder of the run"):
        if is_lead():
            folder.record(run, prepared)
    # Every machine makes its rows by itself: what is resumed or trained together must be the same ones.
    rows = list(prepared.digests)
    if not everywhere(rows == from_lead(rows)):
        raise ValueError(f"rows {run.rows} differ between the machines of this run, though their text does not")

    # Where: mesh and layout.
    mesh = placement.build(devices)
    if run.objective.couples_rows and placement.accumulate > 1:
        raise ValueError(f"a {run.objective.label} loss is of a whole batch, which cannot be computed in parts")
    checkpoints = Checkpoints(folder.checkpoints, keep=placement.checkpoints)
    clock = Watchdog(placement.patience if jax.process_count() > 1 else None)
    with jax.set_mesh(mesh), checkpoints, clock:
        execution = placement.execution(run, mesh)
        check_batch(run.batch, placement.accumulate * execution.microbatches, mesh, execution.rules)
        recipe = Recipe(run.objective, run.optimizer)
        move = advancing(placement.flags, mesh.devices.flat[0].platform)
        key = jax.random.key(run.seed)

        # What: the state, restored or new.
        init = partial(initial_state, run=run, execution=execution)
        restored = checkpoints.restore(abstract(init, mesh, execution.rules, key)) if checkpoints.steps() else None
        state = restored.state if restored else born_sharded(init, mesh, execution.rules, key)
        step = restored.step if restored else 0
        log = MetricsLog(folder, run, from_step=step, tensorboard=placement.tensorboard)

        # Data: which steps go into which call, and the rows for them read ahead.
        window = window_of(run)
        most = min(window, steps_per_call(run, placement))
        calls = calls_of(step, run.steps, window=window, most=most)
        # Room for two steps at least: XLA compiles a loop over an axis of one otherwise, to other last bits.
        feed = Feed(run, prepared, mesh, execution, parts=placement.accumulate, size=max(2, most))

        saved, saved_step, began, before = time.monotonic(), step, time.monotonic(), step
        with contextlib.closing(log), Prefetch(feed, calls) as batches, jax.transfer_guard("disallow"):
            pending, stopping = None, False
            for (first, count), batch in zip(calls, batches, strict=True):
                state, metrics = move(state, *batch, key, recipe=recipe)
                # Metrics are read one call late, while the devices are busy with the next.
                if pending:
                    log.add(*pending)
                pending, step = (first, count, metrics), first + count
                clock.at(f"step {step} of {run.steps}")

                stopping = stopping or stop() or asked_to_stop()
                finished, due = step == run.steps, False
                if step % window == 0:
                    if placement.checkpoint_steps:
                        due = step - saved_step >= placement.checkpoint_steps
                    else:
                        with jax.transfer_guard("allow"):  # the lead's clock is that of all
                            due = from_lead(time.monotonic() - saved > placement.checkpoint_seconds)
                    due = due or stopping
                if finished or due:
                    log.add(*pending)  # a state is saved only after its loss was seen to be finite
                    pending = None
                    if is_lead():
                        folder.push()  # first, so that no checkpoint in a bucket is newer than its metrics there
                    with jax.transfer_guard("allow"):
                        checkpoints.save(step, state, metadata={"run": run.identity})
                    if folder.url and not folder.place.direct:
                        checkpoints.wait()
                        folder.push()
                    saved, saved_step = time.monotonic(), step
                    if stopping and not finished:
                        raise Stopped(f"run {run.identity} stopped at step {step} of {run.steps}")
                speed = (step - before) * run.batch_tokens / (time.monotonic() - began)
                report({"step": step, "steps": run.steps, "loss": log.last_loss, "tokens_per_second": speed})

        # Result.
        clock.at("the last step")
        heard = lambda rows: clock.at(f"{rows} held-out rows")  # noqa: E731
        result = evaluate(state.model, run, prepared, mesh, execution, report=heard)
        if not math.isfinite(result["loss"]):
            raise RunFailed(f"held-out loss is {result['loss']} after step {run.steps}")
        checkpoints.wait()
        result["unique_tokens"] = min(run.tokens, len(prepared.train) * run.batch_tokens // run.batch)
        if is_lead():
            folder.finish(result)
        return result


def steps_per_call(run: Run, placement: Placement) -> int:
    """Steps in one call: as set, or about a second of work on a CPU, which hides what each call costs."""
    if placement.steps_per_call is not None:
        return max(1, placement.steps_per_call)
    return int(np.clip(4e10 / (run.cost.flops_per_token * run.batch_tokens), 1, 64))


def calls_of(first: int, steps: int, *, window: int, most: int) -> list[tuple[int, int]]:
    """Steps `first` to `steps` as pairs of first step and count, none longer than `most` nor across a window's end."""
    calls = []
    while first < steps:
        count = min(most, window - first % window, steps - first)
        calls.append((first, count))
        first += count
    return calls


class Feed:
    """Rows and learning rates of a call, on the devices; each process reads only the rows that its devices hold."""

    def __init__(self, run: Run, prepared: Prepared, mesh: Mesh, execution: Execution, *, parts: int, size: int):
        self.run, self.parts, self.size = run, parts, size
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.sharding = NamedSharding(mesh, execution.rules.spec(None, None, "batch", None))
        self.shape = (size, parts, run.batch // parts, run.data.length + 1)
        # A part is read as a batch of its own, of which this process takes the contiguous share that its devices hold.
        bounds = [
            index[2].indices(self.shape[2])[:2]
            for index in self.sharding.addressable_devices_indices_map(self.shape).values()
        ]
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        self.local = high - low
        self.batches = Batches(
            prepared.train,
            batch=self.shape[2],
            seed=run.seed,
            process_index=low // self.local,
            process_count=self.shape[2] // self.local,
        )

    def __call__(self, first: int, count: int) -> tuple[Array, Array, Array]:
        """Arguments `rows`, `rates` and `count` of `advance`; steps beyond `count` are filled with zeros."""
        rows = np.zeros(self.shape[:2] + (self.local, self.shape[3]), np.int32)
        rows[:count] = self.batches.steps(first * self.parts, count * self.parts).reshape(-1, *rows.shape[1:])
        rates = np.zeros(self.size, np.float32)
        rates[:count] = self.run.schedule.rates(first, count, steps=self.run.steps)
        return (
            jax.make_array_from_process_local_data(self.sharding, rows, self.shape),
            # Not `device_put`, by which many processes would first compare their values: this is not the main thread.
            jax.make_array_from_process_local_data(self.whole, rates, rates.shape),
            jax.make_array_from_process_local_data(self.whole, np.asarray(count, np.int32), ()),
        )
