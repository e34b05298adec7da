"""Ours, in a process of its own: fits of the Chinchilla law, first cold and then warm; one line of JSON."""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402

from scaling import runs  # noqa: E402
from scaling.fitting import solver  # noqa: E402
from scaling.fitting.fit import Kind, Objective, fit  # noqa: E402
from scaling.fitting.starts import starting_points  # noqa: E402
from scaling.laws import CHINCHILLA  # noqa: E402

DELTA = 1e-3


def bootstrap(frame, count: int) -> np.ndarray:
    """Fit the table, draw resamples of its rows, solve each to its own optimum; objectives."""
    found = fit(runs.Table(frame), CHINCHILLA, objective=Objective(Kind.HUBER, DELTA))
    rows = len(frame)
    solution = solver.minimise(
        CHINCHILLA,
        found.columns,
        theta=np.repeat(found.theta[None], count, axis=0),
        target=np.log(frame["loss"].to_numpy())[None],
        weights=np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=count).astype(float),
        delta=DELTA,
    )
    assert (solution.slack < 1e-9).all()
    assert (solution.gradient < 1e-6).all()
    return solution.value


def begin(frame, count: int) -> np.ndarray:
    """Starting points: E, log A, log B, alpha, beta."""
    columns = {name: frame[name].to_numpy() for name in CHINCHILLA.columns}
    return solver.encode(CHINCHILLA, starting_points(CHINCHILLA, columns, frame["loss"].to_numpy(), count=count))


def starts(frame, count: int) -> np.ndarray:
    """Fit the table from many starts: exponents spread, the rest by variable projection; objectives."""
    found = fit(runs.Table(frame), CHINCHILLA, objective=Objective(Kind.HUBER, DELTA), starts=count)
    return np.where(np.arange(count) < round(found.certificate.share * count), found.value, np.inf)


def main() -> None:
    """Arguments: the task, the table, how many, where to leave the objectives."""
    task, path, count, out = sys.argv[1:]
    imported = time.perf_counter()
    frame = runs.read(path)
    spent = []
    for _ in range(4):
        began, processor = time.perf_counter(), time.process_time()
        values = globals()[task](frame, int(count))
        spent.append((time.perf_counter() - began, time.process_time() - processor))
    np.save(out, values)
    facts = {"imports": imported - BEGAN, "cold": spent[0][0]}
    print(json.dumps(facts | {"warm": min(spent[1:])[0], "processor": min(cpu for _, cpu in spent[1:])}))


if __name__ == "__main__":
    main()
