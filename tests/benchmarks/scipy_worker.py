"""A well-tuned SciPy in a process of its own (and two that it forks): the same fits; one line of JSON.

BFGS with the analytic gradient, on logarithms of the coefficients at the middle of the table instead of at N = D = 1
(which takes their correlation with the exponents away), the objective divided by delta, tight tolerances.
"""

import itertools
import json
import multiprocessing
import resource
import sys
import time

import numpy as np
import pandas as pd
import scipy.optimize

DELTA = 1e-3


class Problem:
    """Objective and gradient of (log E, log A, log B, alpha, beta), centred."""

    def __init__(self, frame: pd.DataFrame):
        self.log_n, self.log_d, self.target = (np.log(frame[name].to_numpy()) for name in ("params", "tokens", "loss"))
        self.middle = self.log_n.mean(), self.log_d.mean()
        self.n, self.d = self.log_n - self.middle[0], self.log_d - self.middle[1]

    def centre(self, x: np.ndarray) -> np.ndarray:
        """Coefficients at N = D = 1 -> at the middle of the table."""
        e, a, b, alpha, beta = x
        return np.array([e, a - alpha * self.middle[0], b - beta * self.middle[1], alpha, beta])

    def __call__(self, x: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = x
        terms = np.exp(np.clip([np.full_like(self.n, e), a - alpha * self.n, b - beta * self.d], -700, 700))
        total = terms.sum(axis=0)
        residual = self.target - np.log(total)
        size = np.abs(residual)
        value = weights @ np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
        shares = terms / total * (-weights * np.clip(residual, -DELTA, DELTA))
        slopes = [*shares.sum(axis=1), -shares[1] @ self.n, -shares[2] @ self.d]
        return value / DELTA, np.array(slopes) / DELTA

    def solve(self, x: np.ndarray, weights: np.ndarray) -> scipy.optimize.OptimizeResult:
        """One fit."""
        options = {"gtol": 1e-6, "maxiter": 2000}
        return scipy.optimize.minimize(self, x, args=(weights,), jac=True, method="BFGS", options=options)


def grid() -> np.ndarray:
    """The 4,500 starts of Hoffmann et al. 2022, section D.3: e, a, b, alpha, beta."""
    five, six = np.linspace(0, 2, 5), np.linspace(0, 25, 6)
    return np.array(list(itertools.product(np.linspace(-1, 1, 5), six, six, five, five)))


def used() -> float:
    """Processor seconds of this process and of those it has ended."""
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    """Arguments: the task, the table, how many (or a file of starts), where to leave the objectives."""
    task, path, count, out = sys.argv[1:]
    problem = Problem(pd.read_csv(path))
    rows = len(problem.target)
    began, processor = time.perf_counter(), used()
    with np.errstate(all="ignore"):
        if task == "bootstrap":
            every = np.ones(rows)
            best = min((problem.solve(problem.centre(x), every) for x in grid()[1111::400]), key=lambda end: end.fun)
            weights = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=int(count)).astype(float)
            jobs = [(best.x, each) for each in weights]
        else:
            jobs = [(problem.centre(x), np.ones(rows)) for x in (np.load(count) if count.endswith(".npy") else grid())]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            ends = pool.starmap(problem.solve, jobs, chunksize=25)
            pool.close()
            pool.join()
    spent = time.perf_counter() - began
    np.save(out, np.array([end.fun for end in ends]) * DELTA)
    processor = used() - processor
    print(json.dumps({"imports": 0.0, "cold": spent, "warm": spent, "processor": processor}))


if __name__ == "__main__":
    main()
