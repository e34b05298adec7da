"""Rows on disk and the batches read from them."""

import pickle
import threading

import numpy as np
import pytest

from experiments.data import order
from experiments.data.batches import Batches, HeldOut, Prefetch, Rows

LENGTH = 9


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(23 * (LENGTH + 1), dtype=np.uint16).reshape(23, LENGTH + 1))
    return Rows(tmp_path / "rows.npy")


def test_rows_are_what_lies_on_disk(rows):
    expected = np.load(rows.path).astype(np.int32)
    assert (len(rows), rows.length) == (23, LENGTH)
    np.testing.assert_array_equal(rows[7], expected[7])
    np.testing.assert_array_equal(rows.take(np.asarray([[3, 3], [22, 0]])), expected[[[3, 3], [22, 0]]])
    np.testing.assert_array_equal(rows.__getitems__([5, 1]), expected[[5, 1]])
    assert rows[0].dtype == rows.take(np.asarray([0])).dtype == np.int32
    with pytest.raises(IndexError):
        rows[23]


def test_rows_travel_to_other_processes_without_their_data(rows):
    rows[0]  # opened
    data = pickle.dumps(rows)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data)[3], rows[3])


def test_grain_reads_rows_as_a_random_access_source(rows):
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source(rows).seed(1).shuffle().batch(4)
    seen = np.concatenate([dataset[index] for index in range(len(dataset))])
    np.testing.assert_array_equal(np.sort(seen[:, 0]), np.arange(23) * (LENGTH + 1))


def test_damaged_rows_are_named(tmp_path, rows):
    data = rows.path.read_bytes()
    for name, content in (("short", data[:-1]), ("cut", data[:20]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npy are damaged"):
            len(Rows(path))
    np.save(tmp_path / "float.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"float\.npy holds float64"):
        len(Rows(tmp_path / "float.npy"))
    with pytest.raises(FileNotFoundError, match=r"no prepared rows .*none\.npy"):
        len(Rows(tmp_path / "none.npy"))


def test_a_step_reads_the_rows_of_the_order(rows):
    batches = Batches(rows, batch=4, seed=3)
    for step in (0, 5, 6, 1000):  # 5 crosses the end of the first epoch
        expected = rows.take(order.rows_for_step(step, batch=4, n_rows=23, seed=3))
        np.testing.assert_array_equal(batches.batch(step), expected)
    assert batches.batch(0).shape == (4, LENGTH + 1)
    assert not np.array_equal(batches.batch(0), Batches(rows, batch=4, seed=4).batch(0))


def test_several_steps_at_once_equal_one_by_one(rows):
    batches = Batches(rows, batch=4, seed=3)
    np.testing.assert_array_equal(batches.steps(2, 7), np.stack([batches.batch(step) for step in range(2, 9)]))
    assert batches.steps(2, 0).shape == (0, 4, LENGTH + 1)
    with pytest.raises(ValueError, match="0 or more"):
        batches.steps(-1, 2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_read_the_same_global_batch(rows, processes):
    shares = [Batches(rows, batch=8, seed=0, process_index=i, process_count=processes) for i in range(processes)]
    together = np.concatenate([share.steps(1, 5) for share in shares], axis=1)
    np.testing.assert_array_equal(together, Batches(rows, batch=8, seed=0).steps(1, 5))


def test_batches_that_cannot_be_shared_are_an_error(rows):
    with pytest.raises(ValueError, match="6 rows cannot be shared equally by 4 processes"):
        Batches(rows, batch=6, seed=0, process_index=0, process_count=4)
    with pytest.raises(ValueError, match="process 2 of 2"):
        HeldOut(rows, batch=6, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="batch of 0"):
        Batches(rows, batch=0, seed=0)


@pytest.mark.parametrize(("limit", "count"), [(None, 23), (10, 10), (8, 8), (99, 23)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_held_out_rows_come_once_each_in_order_with_filling_of_weight_zero(rows, limit, count, processes):
    shares = [HeldOut(rows, 8, limit, process_index=i, process_count=processes) for i in range(processes)]
    tokens, weights = [], []
    for parts in zip(*shares, strict=True):
        assert all(part.shape == (8 // processes, LENGTH + 1) for part, _ in parts)
        tokens += [part for part, _ in parts]
        weights += [weight for _, weight in parts]
    tokens, weights = np.concatenate(tokens), np.concatenate(weights)
    assert len(tokens) == len(shares[0]) * 8
    assert weights.tolist() == [1.0] * count + [0.0] * (len(tokens) - count)
    spread = np.arange(count) * len(rows) // count  # a limit takes rows from the whole set, not from its beginning
    np.testing.assert_array_equal(tokens[weights > 0], rows.take(spread))
    assert len(set(spread)) == count
    assert not tokens[weights == 0].any()
    assert shares[0].n_rows == count


def test_held_out_limit_must_be_positive(rows):
    with pytest.raises(ValueError, match="0 held-out rows"):
        HeldOut(rows, 8, 0)


def test_prefetch_yields_all_results_in_order_and_ends():
    requests = [(i, i + 1) for i in range(50)]
    with Prefetch(lambda first, count: first * count, requests) as results:
        assert list(results) == [i * (i + 1) for i in range(50)]
        assert list(results) == []
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_prefetch_works_ahead_but_not_further_than_its_depth():
    started = []
    reached = threading.Event()

    def work(number):
        started.append(number)
        if number == 3:
            reached.set()
        return number

    with Prefetch(work, [(i,) for i in range(100)], depth=2) as results:
        assert next(results) == 0
        assert reached.wait(10)  # one taken, two waiting, one in hand
        assert not threading.Event().wait(0.3)
        assert started == [0, 1, 2, 3]
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
    assert list(results) == []


def test_prefetch_raises_the_error_where_the_result_would_have_come():
    def work(number):
        if number == 2:
            raise OSError("disk gone")
        return number

    results = Prefetch(work, [(i,) for i in range(5)])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
