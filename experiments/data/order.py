"""The order of the data: position in an endless, seeded, shuffled stream of rows -> row number, in O(1) memory.

Nothing here has state. The row at position `p` is a pure function of `(p, n_rows, seed)`, so a run that stops at any
step goes on by knowing the step, any number of processes agrees, and a smaller budget reads a prefix of a larger one.
Epoch `p // n_rows` visits every row once, in its own order.

The permutation is a Feistel network whose two halves are updated in turn (Luby and Rackoff, 1988) over the smallest
power of two that holds the rows, with cycle walking (Black and Rogaway, 2002) for the indices outside. Its round
function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). The result is integer arithmetic alone, the same
on every machine and for ever: tests hold golden values. NumPy's own generators do not promise that.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """SplitMix64's finaliser: every input bit changes each output bit about half of the time."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(
    index: Int64[np.ndarray, " n"], *, size: int, seed: int, epoch: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Where a seeded pseudo-random permutation of `range(size)` sends each index.

    Args:
        index: indices in `range(size)`.
        size: how many there are, at least 1.
        seed: any integer; taken modulo 2^64.
        epoch: which permutation to use, one for each index.

    Returns:
        For each index its image, in `range(size)`.
    """
    bits = (size - 1).bit_length()
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    stream = _mix(np.asarray([(seed + _GOLDEN) % 2**64], np.uint64)) + epoch.astype(np.uint64) * np.uint64(_GOLDEN)
    keys = [_mix(_mix(stream) + np.uint64(_GOLDEN * (number + 1) % 2**64)) for number in range(_ROUNDS)]

    x = index.astype(np.uint64)
    outside = np.arange(len(x))
    while len(outside):
        low, high = x[outside] & low_mask, x[outside] >> low_bits
        for number, key in enumerate(keys):
            if number % 2:
                low ^= _mix(high + key[outside]) & low_mask
            else:
                high ^= _mix(low + key[outside]) & high_mask
        x[outside] = high << low_bits | low
        outside = outside[x[outside] >= size]
    return x.astype(np.int64)


def rows_at(positions: Int64[np.ndarray, " n"], *, n_rows: int, seed: int) -> Int64[np.ndarray, " n"]:
    """The row number at each position of the endless stream.

    Raises:
        ValueError: if there are no rows.
    """
    if n_rows < 1:
        raise ValueError(f"cannot order {n_rows} rows; there must be at least 1")
    epoch, index = np.divmod(positions, n_rows)
    return permute(index, size=n_rows, seed=seed, epoch=epoch)


def rows_for_step(step: int, *, batch: int, n_rows: int, seed: int) -> Int64[np.ndarray, " batch"]:
    """The row numbers of the global batch of one step: those at positions `step * batch + range(batch)`."""
    return rows_at(step * batch + np.arange(batch, dtype=np.int64), n_rows=n_rows, seed=seed)
