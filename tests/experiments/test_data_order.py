"""The order of the data: a permutation for every size, seed and epoch, and the same for ever."""

from collections import Counter

import numpy as np
import pytest

from experiments.data import order


def epoch_of(n_rows, *, seed=0, epoch=0):
    return order.rows_at(epoch * n_rows + np.arange(n_rows), n_rows=n_rows, seed=seed)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 7, 8, 9, 64, 65, 1000, 4097, 100_003])
def test_every_epoch_visits_every_row_once(n_rows):
    for epoch in (0, 1, 7):
        np.testing.assert_array_equal(np.sort(epoch_of(n_rows, seed=3, epoch=epoch)), np.arange(n_rows))


def test_golden_order_never_changes():
    """Runs made with earlier versions read these rows. If this fails, restore the order; do not update the numbers."""
    assert epoch_of(10, seed=0).tolist() == [5, 2, 8, 6, 0, 4, 9, 7, 1, 3]
    assert order.rows_for_step(7, batch=4, n_rows=1_000_003, seed=42).tolist() == [795373, 425770, 666344, 959981]
    assert order.rows_at(np.asarray([10**15]), n_rows=2**40 + 1, seed=-1).tolist() == [538462968770]


def plain_row_at(position, *, n_rows, seed):
    """The same definition in Python's own integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    epoch, x = divmod(position, n_rows)
    bits = (n_rows - 1).bit_length()
    low_bits, high_bits = bits // 2, bits - bits // 2
    stream = (mix((seed + golden) & mask) + epoch * golden) & mask
    while True:
        low, high = x % 2**low_bits, x >> low_bits
        for number in range(8):
            key = mix((mix(stream) + golden * (number + 1)) & mask)
            if number % 2:
                low ^= mix((high + key) & mask) % 2**low_bits
            else:
                high ^= mix((low + key) & mask) % 2**high_bits
        x = high * 2**low_bits + low
        if x < n_rows:
            return x


@pytest.mark.parametrize(("n_rows", "seed"), [(1, 0), (6, 1), (777, -5), (2**33 + 7, 2**70)])
def test_order_equals_its_definition_without_numpy(n_rows, seed):
    positions = np.asarray([0, 1, 5, 1000, 10**9 + 1, 2**50])
    expected = [plain_row_at(int(position), n_rows=n_rows, seed=seed) for position in positions]
    assert order.rows_at(positions, n_rows=n_rows, seed=seed).tolist() == expected


def test_epochs_and_seeds_differ_and_no_row_keeps_its_place():
    n_rows = 10_000
    orders = [epoch_of(n_rows, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)] + [np.arange(n_rows)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 10  # 1 expected of two random permutations; 10 has probability 1e-7


def test_order_looks_random():
    n_rows = 5000
    places = epoch_of(n_rows)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 5 / np.sqrt(n_rows)
    assert abs(np.corrcoef(places, np.arange(n_rows))[0, 1]) < 5 / np.sqrt(n_rows)
    # Small sizes too: over seeds, every permutation of 3 rows comes equally often.
    counts = Counter(tuple(epoch_of(3, seed=seed)) for seed in range(1200))
    chi_square = sum((counts[key] - 200) ** 2 / 200 for key in counts)
    assert len(counts) == 6
    assert chi_square < 25  # 5 degrees of freedom: 0.0001 of the time above


def test_steps_are_consecutive_positions_across_the_epoch_boundary():
    n_rows, batch = 10, 4
    stream = np.concatenate([epoch_of(n_rows, seed=5, epoch=epoch) for epoch in range(3)])
    steps = [order.rows_for_step(step, batch=batch, n_rows=n_rows, seed=5) for step in range(7)]
    np.testing.assert_array_equal(np.concatenate(steps), stream[: 7 * batch])


def test_batch_size_does_not_change_the_stream():
    small = [order.rows_for_step(step, batch=3, n_rows=100, seed=1) for step in range(8)]
    large = [order.rows_for_step(step, batch=12, n_rows=100, seed=1) for step in range(2)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="cannot order 0 rows"):
        order.rows_at(np.arange(3), n_rows=0, seed=0)
