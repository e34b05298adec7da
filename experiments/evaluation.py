"""Loss of a model on held-out rows."""

import math
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from experiments.data.batches import HeldOut
from experiments.data.prepared import Prepared
from experiments.objectives import Causal
from experiments.runs import Run
from models.execution import Execution
from models.transformer import Decoder


@partial(jax.jit, static_argnames="objective")
def row_losses(
    model: Decoder, rows: Int[Array, "batch length+1"], *, objective: Causal
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """For each row the sum of its losses in nats, and the number of its predicted tokens."""
    losses, weights = objective.losses(model, rows, None)
    return losses.sum(axis=1), weights.sum(axis=1)


def evaluate(
    model: Decoder, run: Run, prepared: Prepared, mesh: Mesh, execution: Execution, *, batch: int | None = None
) -> dict[str, float]:
    """Loss on the held-out rows, the same ones in the same order for every run.

    Returns:
        loss: nats per predicted token; loss_se: its standard error, from the spread between rows (tokens of one row are
        not independent); bits_per_byte: the same cross-entropy per byte of the text, which no tokenizer changes.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = batch or math.ceil(max(run.batch, 16) / shards) * shards
    held_out = HeldOut(prepared.held_out, batch=batch, limit=run.evaluation_rows)
    sharding = NamedSharding(mesh, execution.rules.spec("batch", None))
    whole = NamedSharding(mesh, PartitionSpec())
    sums, counts, octets = [], [], 0
    bytes_per_token = prepared.tokenizer.bytes_per_token
    for rows, real in held_out:
        spread = jax.make_array_from_callback(rows.shape, sharding, lambda index, rows=rows: rows[index])
        loss, count = jax.device_get(jax.device_put(row_losses(model, spread, objective=run.objective), whole))
        sums.append(loss[real > 0].astype(np.float64))
        counts.append(count[real > 0].astype(np.float64))
        targets = rows[real > 0, 1:]
        octets += int(bytes_per_token[targets][targets != run.objective.bos].sum())
    sums, counts = np.concatenate(sums), np.concatenate(counts)
    loss = sums.sum() / counts.sum()
    # Standard error of a ratio of means (Cochran 1977, equation 6.13), rows as the units.
    residual = sums - loss * counts
    error = math.sqrt((residual**2).sum() / max(len(sums) - 1, 1) / len(sums)) / counts.mean()
    return {
        "loss": float(loss),
        "loss_se": float(error),
        "bits_per_byte": float(sums.sum() / math.log(2) / max(octets, 1)),
    }
