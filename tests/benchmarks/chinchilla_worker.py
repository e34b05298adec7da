"""PyPI `chinchilla` 0.2.0 in a process of its own: its fit of a grid of starts; one line of JSON.

Its `fit` is timed as it is called by its users, with the objective of the paper. The share of its starts that reach the
optimum is not among its results, so the same minimisations are done once more, outside the clock.
"""

import functools
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time

import numpy as np
import pandas as pd
import scipy.optimize

os.environ["MPLBACKEND"] = "agg"

from chinchilla import Chinchilla
from chinchilla._metrics import log_huber

DELTA = 1e-3
GRID = {
    "e": np.linspace(-1, 1, 4),
    "a": np.linspace(0, 25, 4),
    "b": np.linspace(0, 25, 4),
    "alpha": np.linspace(0.1, 2, 4),
    "beta": np.linspace(0.1, 2, 4),
}


fitter: Chinchilla  # a global, so that forked processes have it: it cannot be pickled


def end_of(start: np.ndarray) -> float:
    """Where one start ends."""
    return float(scipy.optimize.minimize(fitter._evaluate_params, start, method=fitter.algorithm).fun)


def used() -> float:
    """Processor seconds of this process and of those it has ended."""
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    """Arguments: the task (starts), the table, how many (the grid has 1,024 anyway), where to leave the objectives."""
    global fitter
    _, path, _, out = sys.argv[1:]
    frame = pd.read_csv(path)
    with tempfile.TemporaryDirectory() as folder:
        fitter = Chinchilla(
            folder,
            param_grid={name: tuple(values) for name, values in GRID.items()},
            seed_ranges={"C": (1e18, 1e22), "N_to_D": (1.0, 1000.0)},
            loss_fn=functools.partial(log_huber, delta=DELTA),
            log_level=50,
        )
        fitter.database.df = pd.DataFrame(
            {"C": frame["flops"], "N": frame["params"], "D": frame["tokens"], "loss": frame["loss"]}
        )
        began, processor = time.perf_counter(), used()
        fitter.fit()
        spent = time.perf_counter() - began
        processor = used() - processor
        starts = np.array(list(itertools.product(*GRID.values()))) / fitter._autoscale_range
        with multiprocessing.get_context("fork").Pool(2) as pool:
            ends = pool.map(end_of, starts, chunksize=16)
    np.save(out, np.array(ends) * len(frame))
    print(json.dumps({"imports": 0.0, "cold": spent, "warm": spent, "processor": processor}))


if __name__ == "__main__":
    main()
