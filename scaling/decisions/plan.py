"""The plan: how to spend a budget, how sure that is, what it costs to deviate, and which runs to buy before."""

from collections.abc import Mapping, Sequence

import numpy as np

from scaling import laws, runs
from scaling.certainty.bootstrap import Bootstrap, bootstrap
from scaling.decisions.allocation import Allocation, Plan
from scaling.decisions.constraints import Constraints, Setting
from scaling.decisions.design import candidate_grid, check_candidates, choose
from scaling.decisions.deviation import deviations, near
from scaling.estimate import Estimate
from scaling.fitting import quantities
from scaling.fitting.fit import Objective, fit
from scaling.fitting.powerlaw import Compute, compute
from scaling.fitting.quantities import Quantity
from scaling.laws import Law

_FAR = 100.0  # times the compute of the largest run; beyond, a plan is warned about
TARGETS = ("params", "tokens", "ratio", "loss", "a", "b", "all")
"""What next runs can be chosen for, besides the law's own parameters: N*, D*, D*/N*, L* at the budget, the exponents of
N* and D* in compute, and all parameters of the law together (D-optimal)."""


def plan(
    table: runs.Source,
    *,
    flops: float | Sequence[float],
    law: Law | str = "chinchilla",
    constraints: Constraints | None = None,
    at: Mapping[str, float] | None = None,
    next_runs: int = 0,
    budget: float | None = None,
    target: str | Quantity = "params",
    candidates: runs.Source | None = None,
    tolerance: float = 0.1,
    objective: Objective | None = None,
    convention: runs.Convention | None = None,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Plan:
    """The compute-optimal parameters and tokens of budgets, and the runs that would make them surer.

    Args:
        table: a file, a frame, or a checked `runs.Table`.
        flops: one budget or several; training FLOPs in the table's convention, with those of serving where
            `constraints` name served tokens.
        law: one that reads `params` and `tokens`, or its name.
        constraints: what is given besides.
        at: values of what else the law reads, `{"width": 1024}`.
        next_runs: how many runs to choose; none by default.
        budget: FLOPs they may cost together.
        target: what they should make surer: one of `TARGETS`, a parameter's name, or any `Quantity`.
        candidates: runs to choose from, a table with params and tokens; a grid around the table unless given.
        tolerance: extra compute that counts as near the optimum, 0.1 for 10 %.
        objective: of the fit.
        convention: which columns are N and C.
        columns: our name -> the table's.
        where: keeps rows, such as "loss < 3".
        resamples: of the bootstrap behind every interval.
        seed: of it.

    Returns:
        The plan. A fit that failed its certificate and a budget far beyond the table are in its `warnings`.

    Raises:
        ValueError: no law of N and D, an unusable table, a budget that is no positive number or does not pay for the
            constraints, an unknown target, or next runs without a budget.
    """
    law = laws.get(law) if isinstance(law, str) else law
    budgets = [float(each) for each in np.atleast_1d(flops)]
    if not budgets or not all(np.isfinite(each) and each > 0 for each in budgets):
        raise ValueError(f"a compute budget is a positive number of FLOPs, not {flops!r}")
    if next_runs and budget is None:
        raise ValueError("to choose next runs, say what they may cost together: budget, in FLOPs")
    constraints, at = constraints or Constraints(), dict(at or {})
    _readable(law, at)
    convention = convention or runs.Convention()
    needs = ("params", "tokens", "flops", "loss", *law.columns)
    checked = runs.load(table, columns=columns, where=where, convention=convention, needs=needs)
    frame = convention.view(checked.frame)
    cost = compute(*(frame[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")))
    boot = bootstrap(
        fit(checked, law, objective=objective, convention=convention), resamples=resamples, seed=seed
    )  # fmt: skip
    setting = Setting(law, cost, constraints, at)
    sizes = {name: frame[name].to_numpy(np.float64) for name in ("params", "tokens", "flops")}
    allocations = tuple(_allocation(boot, setting, each, sizes, tolerance) for each in sorted(budgets))
    chosen = None
    if next_runs:
        quantity = _target(target, law, cost, max(budgets), at)
        if candidates is None:
            offered = candidate_grid(sizes, cost, budget)
        else:
            offered = check_candidates(candidates, cost)
        chosen = choose(boot, offered, quantity, runs=next_runs, budget=budget, at=at)
    warnings = (*_warnings(boot, allocations), *(chosen.warnings if chosen else ()))
    notes = [
        f"{len(frame)} runs; {law.name}: {law.text}; {convention}, {cost}.",
        *constraints.describe(law),
        f"Intervals: {boot.method}. They know the noise of the runs, not how the law itself may change with scale.",
        *(each.distance for each in allocations),
        *checked.notes,
        *(chosen.notes if chosen else ()),
    ]
    if "unique_tokens" in law.columns and constraints.unique_tokens is None:
        notes.insert(1, "Every token is taken for unique; give the unique tokens there are to plan with repeats.")
    return Plan(allocations, chosen, setting, tolerance, tuple(warnings), tuple(notes), boot)


def _readable(law: Law, at: Mapping[str, float]) -> None:
    if law.target != "loss" or not {"params", "tokens"} <= set(law.columns):
        able = [
            name
            for name, each in laws.LAWS.items()
            if each.target == "loss" and {"params", "tokens"} <= set(each.columns)
        ]
        raise ValueError(
            f"law {law.name!r} reads {', '.join(law.columns)}, so it cannot split a budget into parameters and tokens; "
            f"laws that can: {', '.join(able)}"
        )
    for name in law.columns:
        if name not in ("params", "tokens", "unique_tokens", *at):
            raise ValueError(f"law {law.name!r} reads {name!r}; say at which value to plan, such as {name}=1")
    for name in at:
        if name not in law.columns or name in ("params", "tokens"):
            raise ValueError(f"law {law.name!r} has no column {name!r} to fix" + runs.nearest(name, law.columns))


def _positive(boot: Bootstrap, draws: np.ndarray, value: float) -> Estimate:
    """An interval in the logarithm, so that stretching it never crosses zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(draws)
    log = boot.of(np.where(np.isfinite(logs), logs, np.nan), float(np.log(value)))
    return Estimate(float(value), float(np.exp(log.low)), float(np.exp(log.high)))


def _allocation(
    boot: Bootstrap, setting: Setting, flops: float, sizes: Mapping[str, np.ndarray], tolerance: float
) -> Allocation:
    law, constraints = setting.law, setting.constraints
    params, tokens, loss = map(float, setting.optimum(boot.fit.parameters, flops))
    if not np.isfinite([params, tokens, loss]).all():
        raise ValueError(f"law {law.name!r} as fitted has no lowest loss at {flops:.3g} FLOPs")
    drawn = setting.optimum(boot.by_name, flops)
    free = constraints.params is None and constraints.tokens is None
    training = setting.cost.flops(params, tokens)
    beyond = float(training / sizes["flops"].max())
    return Allocation(
        flops=flops,
        params=_positive(boot, drawn[0], params),
        tokens=_positive(boot, drawn[1], tokens),
        tokens_per_param=_positive(boot, drawn[1] / drawn[0], tokens / params),
        loss=boot.of(drawn[2], loss),
        measured=boot.new_run({name: float(value) for name, value in setting.read(params, tokens).items()}),
        training_flops=training,
        epochs=None if constraints.unique_tokens is None else max(tokens / constraints.unique_tokens, 1.0),
        near=near(boot, setting, flops, params=params, loss=loss, tolerance=tolerance) if free else None,
        deviations=deviations(boot, setting, flops, params=params, loss=loss, lowest=drawn[2]) if free else (),
        beyond=beyond,
        distance=_distance(sizes, flops, params, tokens, beyond),
    )


def _target(target: str | Quantity, law: Law, cost: Compute, flops: float, at: Mapping[str, float]) -> Quantity | None:
    """The quantity asked for; None for all parameters of the law."""
    if isinstance(target, Quantity):
        return target
    if target == "all":
        return None
    made = {
        "params": quantities.optimal_params,
        "tokens": quantities.optimal_tokens,
        "ratio": quantities.tokens_per_param,
        "loss": quantities.optimal_loss,
    }
    if target in made:
        return made[target](law, cost, flops, columns=at)
    if target in ("a", "b") and target not in law.names:
        return {"a": quantities.params_exponent, "b": quantities.tokens_exponent}[target](law, cost, flops)
    if target not in law.names:
        raise ValueError(f"no target {target!r} for law {law.name!r}" + runs.nearest(target, (*TARGETS, *law.names)))
    return quantities.parameter(law, target)


def _distance(sizes: Mapping[str, np.ndarray], flops: float, params: float, tokens: float, beyond: float) -> str:
    spans = np.log10(sizes["flops"].max() / sizes["flops"].min())
    if beyond <= 1:
        said = f"{flops:.3g} FLOPs lie within the compute of the table"
    else:
        said = (
            f"{flops:.3g} FLOPs lie {beyond:.3g} times beyond the largest run: {np.log10(beyond):.1f} decades past a "
            f"table that spans {spans:.1f}"
        )
    outside = [
        f"{symbol} is {_outside(value, sizes[name])}"
        for symbol, name, value in (("N*", "params", params), ("D*", "tokens", tokens))
        if _outside(value, sizes[name])
    ]
    ratio = sizes["tokens"] / sizes["params"]
    if _outside(tokens / params, ratio):
        outside.append(f"D*/N* is {_outside(tokens / params, ratio)}")
    return said + ("; " + ", ".join(outside) if outside else "") + "."


def _outside(value: float, values: np.ndarray) -> str:
    if value > values.max() * 1.001:
        return f"{value / values.max():.3g} times the table's largest"
    return f"{values.min() / value:.3g} times below the table's smallest" if value < values.min() / 1.001 else ""


def _warnings(boot: Bootstrap, allocations: tuple[Allocation, ...]) -> list[str]:
    fitted, found = boot.fit, []
    if not fitted.certificate.passed:
        found.append("the fit failed its certificate: the parameters behind this plan are no certified optimum.")
    found += fitted.warnings
    if boot.failed:
        found.append(f"{boot.failed} refits did not reach an optimum and were left out: intervals are too narrow.")
    far = [each for each in allocations if each.beyond > _FAR]
    if far:
        found.append(
            f"{far[-1].flops:.3g} FLOPs lie {far[-1].beyond:.3g} times beyond the largest run; the intervals hold only "
            "if the law does. `audit` says how its exponents drift and how it predicted beyond a cut-off."
        )
    for each in allocations:
        if np.isfinite([each.params.low, each.params.high]).all() and each.params.high > 100 * each.params.low:
            found.append(
                f"this table does not determine N* at {each.flops:.3g} FLOPs: its interval spans "
                f"{each.params.high / each.params.low:.3g}x."
            )
    return found
