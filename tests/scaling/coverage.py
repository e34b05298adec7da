"""How often intervals hold the truth: simulated tables whose law is known, every method, every quantity.

    python tests/scaling/coverage.py --tables 400 --rows 24 60 240 --noise normal heavy differing

prints one table for each number of rows and kind of noise; `pytest -m slow tests/scaling/test_coverage.py -s` prints
the same with fewer tables and fails where a share lies outside the band that is promised.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import scipy.special
from tables import HELD_OUT, TRUTH, isoflop_table

from scaling import runs
from scaling.certainty.bootstrap import Resampling, bootstrap, laplace
from scaling.certainty.profile import profiles
from scaling.fitting import quantities, solver
from scaling.fitting.fit import fit
from scaling.fitting.powerlaw import Compute
from scaling.laws import CHINCHILLA

NOMINAL = 0.95
BAND = (0.90, 0.98)
SIGMA = 0.007
COST = Compute(10.0, 0.974, 0.0)  # of `tables.flops_per_token`
DESIGNS = {24: (4, 6), 60: (6, 10), 120: (6, 20), 240: (12, 20)}  # rows: budgets, sizes at each

QUANTITIES = (
    *(quantities.parameter(CHINCHILLA, name) for name in CHINCHILLA.names),
    quantities.params_exponent(CHINCHILLA, COST),
    quantities.optimal_params(CHINCHILLA, COST, HELD_OUT),
    quantities.tokens_per_param(CHINCHILLA, COST, HELD_OUT),
    quantities.optimal_loss(CHINCHILLA, COST, HELD_OUT),
)
NEW_RUN = "new run"
NAMES = (*(each.name for each in QUANTITIES), NEW_RUN)
KINDS = ("normal", "heavy", "differing", "clustered")
METHODS = ("residual", "pairs", "wild", "laplace", "profile")


def noise_of(kind, frame, generator):
    """Log errors of standard deviation near SIGMA.

    Normal; heavy-tailed (Student, 3); larger for small models; or shared by the runs at one place of the ladder.
    """
    rows = len(frame)
    if kind == "normal":
        return SIGMA * generator.standard_normal(rows)
    if kind == "heavy":
        return SIGMA * generator.standard_t(3, rows) / np.sqrt(3)
    if kind == "clustered":
        labels = clusters_of(rows - 1)
        own = 0.2 * generator.standard_normal(rows)
        return SIGMA * (own + np.append(generator.standard_normal(labels.max() + 1)[labels], 0.0))
    assert kind == "differing"
    small = frame["params"] < frame["params"].median()
    return SIGMA * generator.standard_normal(rows) * np.where(small, 1.35, 0.45)


def clusters_of(rows):
    """The place of every run on its budget's ladder of sizes."""
    budgets, sizes = DESIGNS[rows]
    return np.tile(np.arange(sizes), budgets)


def tables_of(rows, kind, seeds):
    """Designed tables, each fitted, with one run at five times its largest budget."""
    budgets, sizes = DESIGNS[rows]
    frame = isoflop_table(noise=0.0, budgets=np.geomspace(5e10, 8e11, budgets), sizes=sizes)
    fitted, held = runs.split(frame)
    exact = fit(runs.Table(fitted), CHINCHILLA)
    errors = np.stack([noise_of(kind, frame, np.random.default_rng(10_000 + seed)) for seed in seeds])
    target = np.log(frame["loss"].to_numpy()) + errors
    # One design, so all tables are one batch for the solver; from the truth, since starts are not what is tested.
    solution = solver.minimise(
        CHINCHILLA,
        exact.columns,
        theta=np.repeat(exact.theta[None], len(seeds), axis=0),
        target=target[:, :rows],
        weights=np.ones((1, rows)),
        delta=exact.objective.threshold,
    )
    run = held.iloc[0]
    at = {"params": run["params"], "tokens": run["tokens"]}
    for values, each in zip(solver.decode(CHINCHILLA, solution.theta), target, strict=True):
        parameters = dict(zip(CHINCHILLA.names, map(float, values), strict=True))
        residuals = each[:rows] - np.log(CHINCHILLA(exact.columns, parameters))
        yield replace(exact, parameters=parameters, residuals=residuals), at, float(np.exp(each[rows]))


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated tables in which an interval held the truth."""

    rows: int
    noise: str
    tables: int
    hits: dict[tuple[str, str], int]

    def share(self, method, name):
        return self.hits[method, name] / self.tables

    def __str__(self):
        lines = [f"{self.rows} rows, {self.noise} noise, {self.tables} tables, nominal {NOMINAL:.0%}"]
        lines.append(f"{'':10}" + "".join(f"{name.replace(' at 4e+12', ''):>9}" for name in NAMES))
        for method in METHODS:
            cells = ""
            for name in NAMES:
                known = (method, name) in self.hits
                cells += f"{100 * self.share(method, name):9.1f}" if known else f"{'–':>9}"
            lines.append(f"{method:10}{cells}")
        return "\n".join(lines)

    def outside(self, probability=1e-3):
        """Cells that chance does not explain if the true share is in the band."""
        found = []
        for (method, name), hits in self.hits.items():
            too_few = scipy.special.bdtr(hits, self.tables, BAND[0])
            too_many = scipy.special.bdtrc(hits - 1, self.tables, BAND[1])
            if min(too_few, too_many) < probability:
                found.append(f"{method}, {name}: {hits} of {self.tables}")
        return found


def simulate(rows, kind, tables, *, methods=METHODS, resamples=400, first=0):
    """Fit, interval, compare; for each simulated table."""
    hits = defaultdict(int)
    clusters = clusters_of(rows) if kind == "clustered" else None
    seeds = range(first, first + tables)
    for seed, (found, at, loss) in zip(seeds, tables_of(rows, kind, seeds), strict=True):
        for method in methods:
            if method == "profile":
                estimates = [each.estimate for each in profiles(found, QUANTITIES, clusters=clusters)]
            else:
                if method == "laplace":
                    draws = laplace(found, seed=seed, clusters=clusters)
                else:
                    drawn = {"resampling": Resampling(method), "resamples": resamples, "seed": seed}
                    draws = bootstrap(found, clusters=clusters, **drawn)
                estimates = [draws.quantity(each) for each in QUANTITIES]
                if clusters is None:
                    hits[method, NEW_RUN] += loss in draws.new_run(at)
            for quantity, estimate in zip(QUANTITIES, estimates, strict=True):
                hits[method, quantity.name] += float(quantity(TRUTH)) in estimate
    return Coverage(rows, kind, tables, dict(hits))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="+", default=[24, 60, 240], choices=list(DESIGNS))
    parser.add_argument("--noise", nargs="+", default=["normal"], choices=list(KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    for kind in given.noise:
        for rows in given.rows:
            print(simulate(rows, kind, given.tables, methods=given.methods), flush=True)
