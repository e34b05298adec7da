"""Tables with a known law behind them, and the published ones where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TRUTH = {"E": 1.6, "A": 1.5 * 2e4**0.4, "B": 1.2 * 1.5e6**0.35, "alpha": 0.4, "beta": 0.35}
BUDGETS = (5e10, 1.26e11, 3.2e11, 8e11)
HELD_OUT = 4e12


def loss(params, tokens, parameters=TRUTH):
    p = parameters
    return p["E"] + p["A"] * params ** -p["alpha"] + p["B"] * tokens ** -p["beta"]


def flops_per_token(params):
    """Of models so small that head and attention weigh: 10 N^0.974."""
    return 10 * params**0.974


def isoflop_table(*, seed=0, noise=0.007, sizes=6, budgets=BUDGETS, held_out=True):
    """What the quickstart trains: a few sizes about the optimum of each budget, and one run far beyond."""
    generator, rows = np.random.default_rng(seed), []
    for budget in (*budgets, *([HELD_OUT] if held_out else [])):
        beyond = held_out and budget == HELD_OUT
        middle = 2.4e4 * (budget / 2e11) ** 0.48
        for params in middle * (np.ones(1) if beyond else np.geomspace(0.3, 3.2, sizes)):
            tokens = budget / flops_per_token(params)
            measured = loss(params, tokens) * np.exp(noise * generator.standard_normal())
            role = "held-out" if beyond else "sweep"
            row = {"run": f"r{len(rows):02d}", "role": role, "params": params, "tokens": tokens, "flops": budget}
            rows.append(row | {"params_nonembedding": 0.6 * params, "loss": measured, "status": "done", "seed": 0})
    return pd.DataFrame(rows)


def curves_of(table):
    """Training curves that end at each run's loss."""
    rows = []
    for run in table[table["role"] == "sweep"].itertuples():
        ratio = run.loss / loss(run.params, run.tokens)
        for share in np.geomspace(0.03, 1, 25):
            seen = share * run.tokens
            row = {"run": run.run, "params": run.params, "tokens": seen, "flops": share * run.flops}
            rows.append(row | {"loss": loss(run.params, seen) * ratio})
    return pd.DataFrame(rows)


def published(name):
    """Path of a published table, or a skip that says where it was looked for."""
    given = os.environ.get("SCALING_DATA")
    root = Path(given) if given else Path(__file__).parents[2].parent / "shared" / "data"
    path = root / "published" / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {root / 'published'}; set SCALING_DATA to the folder that holds published/")
    return path
