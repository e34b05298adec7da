"""The fitter: a law and a table in, parameters and the evidence that they are the optimum out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float

from scaling import laws, runs
from scaling.display import Displayed, Page, Section, number
from scaling.fitting import solver
from scaling.fitting.certificate import Certificate, at_bounds, condition, second_opinion
from scaling.fitting.starts import starting_points
from scaling.laws import Law

ERRORS = "loss_se"
"""The column of standard errors; as weights it means their inverse squares."""

_MANY = 2**13  # rows beyond which starts are tried on a part of the table
_MEETING = 9  # decimals, of the solver's coordinates, in which starts agree that found one least-squares optimum
_NEARBY = 100  # steps of a start by least squares, where a robust objective follows
_UNCERTIFIED = "NO CERTIFIED OPTIMUM, do not use these parameters: "


class Kind(Enum):
    """What is minimised over log residuals."""

    HUBER = "huber"
    LEAST_SQUARES = "least-squares"


@dataclass(frozen=True)
class Objective:
    """Sum over runs of a loss of the log residual, log(measured) - log(predicted).

    Attributes:
        kind: HUBER as in Hoffmann et al. 2022, section 3.3, or LEAST_SQUARES.
        delta: where Huber turns from quadratic to linear; 1e-3 in the paper, nearly least absolute deviations.
        weights: a column of row weights; of `loss_se` the inverse square of the relative error is taken. Divided by
            their mean, so that objectives stay comparable and delta keeps its meaning. None weighs runs alike, also
            when the table has a `loss_se`: that is the error of measuring a loss on finite text, mostly common to all
            runs and smaller than what separates a run from the law (its seed, its tuning, the form), so that weights
            made of it would let the runs with the most evaluated text decide the fit.
    """

    kind: Kind = Kind.HUBER
    delta: float = 1e-3
    weights: str | None = None

    def __post_init__(self):
        if not 0 < self.delta < np.inf:
            raise ValueError(f"delta must be a positive log residual, such as 1e-3, not {self.delta}")

    @staticmethod
    def usual(rows: int) -> "Objective":
        """The default: Huber with delta 1e-3 from 100 runs on, and 1e-2 below.

        Near least absolute deviations a small table is fitted through as many runs as there are parameters, and
        intervals come out too narrow: of simulated 24-run tables with 0.7 % noise, nominal 95 % intervals of the
        parameters and of a run five times beyond held the truth in 87-91 % with delta 1e-3, and in 96-98 % with 1e-2.
        """
        return Objective(delta=1e-3 if rows >= 100 else 1e-2)

    @property
    def threshold(self) -> float:
        """The Huber delta the solver is given."""
        return self.delta if self.kind is Kind.HUBER else solver.LEAST_SQUARES

    def row_weights(self, frame: pd.DataFrame, *, target: str = "loss") -> Float[np.ndarray, " rows"]:
        """Of every row of a table, with mean one.

        Raises:
            ValueError: no such column, or a weight that is not a positive number.
        """
        if self.weights is None:
            return np.ones(len(frame))
        if self.weights not in frame:
            raise ValueError(
                f"no column {self.weights!r} to weigh runs by" + runs.nearest(self.weights, map(str, frame))
            )
        given = pd.to_numeric(frame[self.weights], errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~(np.isfinite(given) & (given > 0)))
        if len(bad):
            raise ValueError(
                f"column {self.weights!r} must be positive to weigh runs by; it is not in {len(bad)} of {len(given)} "
                f"rows (first: row {bad[0]}, {frame[self.weights].iloc[bad[0]]!r})"
            )
        if self.weights == ERRORS:
            given = (frame[target].to_numpy(np.float64) / given) ** 2
        return given / given.mean()

    def __str__(self) -> str:
        name = f"Huber, delta {self.delta:g}" if self.kind is Kind.HUBER else "least squares"
        weighed = {None: "", ERRORS: ", weighed by 1 / loss_se^2"}.get(self.weights, f", weighed by {self.weights}")
        return f"sum over runs, {name}, of log residuals{weighed}"


@dataclass(frozen=True)
class Fit(Displayed):
    """A fitted law.

    Attributes:
        law: the form.
        parameters: name -> value.
        objective: what was minimised.
        value: its minimum.
        residuals: log(measured) - log(predicted), one a row.
        columns: the columns it was fitted on, by the law's names.
        weights: of the rows, with mean one.
        convention: which columns N and C were.
        certificate: evidence of the optimum.
        notes: what was derived or dropped from the table.
        warnings: what a reader must know before using the parameters; empty when nothing is wrong. The first says so
            when the certificate failed.
    """

    law: Law
    parameters: dict[str, float]
    objective: Objective
    value: float
    residuals: Float[np.ndarray, " rows"] = field(repr=False)
    columns: dict[str, Float[np.ndarray, "rows ..."]] = field(repr=False)
    weights: Float[np.ndarray, " rows"] = field(repr=False)
    convention: runs.Convention
    certificate: Certificate
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def sigma(self) -> float:
        """Standard deviation of the log residuals, corrected for the number of parameters."""
        freedom = max(len(self.residuals) - len(self.parameters), 1)
        return float(np.sqrt(np.sum(self.weights * self.residuals**2) / freedom))

    @property
    def theta(self) -> Float[np.ndarray, " parameters"]:
        """The parameters in the solver's coordinates."""
        return solver.encode(self.law, np.array([self.parameters[name] for name in self.law.names]))

    def predict(self, columns: Mapping[str, Float[np.ndarray, "*rows"]]) -> Float[np.ndarray, "*rows"]:
        """Loss, nats per token, at other columns."""
        return self.law(columns, self.parameters)

    def page(self) -> Page:
        """What `print`, a notebook and the command line show: the verdict, parameters, the certificate."""
        about = f"{self.law.name} on {len(self.residuals)} runs"
        answer = f"{about}: certified optimum, {self.law.text}"
        warnings = self.warnings
        if not self.certificate.passed:
            answer, warnings = f"{about}: {warnings[0]}", warnings[1:]
        certificate, second = self.certificate, self.certificate.second
        evidence = (
            ("objective", f"{self.value:.8g}"),
            ("a further step promises", f"{certificate.slack:.1e}"),
            ("scaled gradient", f"{certificate.gradient:.1e}"),
            (f"share of {certificate.starts} starts that reached it", f"{certificate.share:.0%}"),
            ("second solver (BFGS): objective", f"{second.objective:+.1e}"),
            ("second solver (BFGS): parameters", f"{second.parameters:.1e}"),
            ("at bounds", ", ".join(certificate.at_bounds) or "none"),
            ("condition number", f"{certificate.condition:.1e}"),
            ("residuals, standard deviation", f"{self.sigma:.2%}"),
        )
        parameters = tuple((each.name, number(self.parameters[each.name])) for each in self.law.parameters)
        return Page(
            answer=answer,
            warnings=warnings,
            sections=(
                Section("parameters", ("parameter", "value"), parameters),
                Section("certificate", ("evidence", "value"), evidence),
            ),
            notes=(f"{self.objective}; {self.convention}; {self.law.source}", *self.notes),
        )

    def to_dict(self) -> dict:
        """A summary of plain types, for JSON."""
        return {
            "law": self.law.name,
            "formula": self.law.text,
            "source": self.law.source,
            "columns": {"params": self.convention.params, "flops": self.convention.flops, "read": [*self.law.columns]},
            "runs": len(self.residuals),
            "parameters": dict(self.parameters),
            "objective": self.value,
            "objective_is": str(self.objective),
            "residual": {"sigma": self.sigma, "largest": float(np.max(np.abs(self.residuals)))},
            "certificate": self.certificate.to_dict(),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def fit(
    table: runs.Source,
    law: Law | str = "chinchilla",
    *,
    objective: Objective | None = None,
    convention: runs.Convention | None = None,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    starts: int | None = None,
) -> Fit:
    """Fit a law to a table of runs.

    Residuals are of the logarithm; every start is solved to its own optimum in float64 with exact derivatives, and the
    lowest is returned with its certificate. Of a table of more than 8,192 rows that many, evenly spaced, decide between
    the starts, and the optimum is then found on all.

    Args:
        table: a file, a frame, or a checked `runs.Table`; every usable row that is not held out is fitted.
        law: a law, or the name of one.
        objective: `Objective.usual` unless said otherwise.
        convention: which columns are N and C; `params` and `flops` unless said otherwise.
        columns: our name -> the table's, for tables that use other names.
        where: keeps rows, such as "loss < 3".
        starts: how many starting points to spread over the law's ranges; unless said otherwise the law's own grid.

    Returns:
        The fit. What is wrong with it, a degenerate design for one, is in its `warnings`.

    Raises:
        ValueError: unknown law, missing column, or no more rows than parameters.
    """
    law = laws.get(law) if isinstance(law, str) else law
    convention = convention or runs.Convention()
    needs = (*(name for name in law.columns if name not in law.unchecked), law.target)
    table = runs.load(table, columns=columns, where=where, convention=convention, needs=needs, minimum=1)
    frame = convention.view(table.frame)
    objective = objective or Objective.usual(len(frame))
    for name in (*law.columns, law.target):
        if name not in frame:
            raise ValueError(f"law {law.name!r} needs column {name!r}" + runs.nearest(name, map(str, frame.columns)))
    if len(frame) <= len(law.parameters):
        raise ValueError(
            f"law {law.name!r} has {len(law.parameters)} parameters and the table {len(frame)} usable runs; "
            f"at least {len(law.parameters) + 1} are needed"
        )
    columns = {name: laws.array(frame[name]) for name in law.columns}
    for name in law.unchecked:
        if not np.isfinite(columns[name]).all():
            raise ValueError(f"column {name!r} is missing or not finite in some rows; law {law.name!r} needs it in all")
    target = np.log(frame[law.target].to_numpy(np.float64))
    weights = objective.row_weights(frame, target=law.target)
    solution, begun, certificate = _solve(law, columns, target, weights, objective, starts)
    parameters = dict(zip(law.names, map(float, solver.decode(law, solution.theta[0])), strict=True))
    residuals = target - np.log(law(columns, parameters))
    return Fit(
        law=law,
        parameters=parameters,
        objective=objective,
        value=float(solution.value[0]),
        residuals=residuals,
        columns=columns,
        weights=weights,
        convention=convention,
        certificate=certificate,
        warnings=_warnings(law, columns, residuals, certificate),
        notes=(*table.notes, *begun),
    )


def _solve(
    law: Law, columns, target, weights, objective: Objective, starts: int | None
) -> tuple[solver.Solution, tuple[str, ...], Certificate]:
    """The optimum, a batch of one; what to note about how it was found; its certificate."""
    rows = np.arange(len(target))
    notes = ()
    if len(rows) > _MANY:
        rows = np.linspace(0, len(target) - 1, _MANY).astype(int)
        notes = (f"starts and second solver: on {_MANY:,} of {len(target):,} rows, evenly spaced; optimum: on all.",)
    part = {name: values[rows] for name, values in columns.items()}
    problem = {"target": target[rows], "weights": weights[rows], "delta": objective.threshold}

    def minimise(theta, delta, **limit):
        shared = problem["target"][None], problem["weights"][None]
        return solver.minimise(law, part, theta=theta, target=shared[0], weights=shared[1], delta=delta, **limit)

    # Least squares first: smooth, so every start arrives, or after some steps is as near as the robust objective needs.
    begin = solver.encode(law, starting_points(law, part, np.exp(target[rows]), count=starts))
    robust = objective.kind is Kind.HUBER
    solution = smooth = minimise(begin, solver.LEAST_SQUARES, **({"iterations": _NEARBY} if robust else {}))
    reached = np.arange(len(begin))  # of every start, where it went
    if robust:  # starts that met go on as one
        _, met, reached = np.unique(smooth.theta.round(_MEETING), axis=0, return_index=True, return_inverse=True)
        solution = minimise(smooth.theta[met], objective.delta)
    if not np.isfinite(solution.value).any():
        raise ValueError(f"law {law.name!r} is not finite on this table at any starting point")
    best = int(np.nanargmin(solution.value))
    share = float(np.mean(solution.value[reached] <= solution.value[best] * (1 + 1e-6) + 1e-20))
    solution = solver.Solution(*(field[[best]] for field in solution))
    others = begin[[len(begin) // 2]]
    second = second_opinion(law, part, **problem, solution=solution, starts=others)
    if len(rows) < len(target):
        solution = solver.minimise(
            law, columns, theta=solution.theta, target=target[None], weights=weights[None], delta=objective.threshold
        )
    certificate = Certificate(
        slack=float(solution.slack[0]),
        gradient=float(solution.gradient[0]),
        share=share,
        starts=len(begin),
        second=second,
        condition=condition(solution.gauss[0]),
        at_bounds=tuple(np.array(law.names)[at_bounds(law, solution.theta[0])].tolist()),
    )
    return solution, notes, certificate


def _warnings(law: Law, columns, residuals: np.ndarray, certificate: Certificate) -> tuple[str, ...]:
    found = []
    if failures := certificate.failures():
        found.append(_UNCERTIFIED + " ".join(failures))
    logs = {name: np.log(values) for name, values in columns.items() if name not in law.unchecked}
    constant = [name for name, values in logs.items() if np.ptp(values) < 1e-6]
    for name in constant:
        found.append(f"every run has the same {name}, so its exponent and weight cannot be told from a constant.")
    names = [name for name in logs if name not in constant]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if abs(np.corrcoef(logs[one], logs[other])[0, 1]) > 0.999:
                found.append(
                    f"{one} and {other} rise together in every run (a collinear design), so their effects cannot be "
                    "told apart; do not extrapolate from this fit."
                )
    structure = _structure(list(logs.values()), residuals, len(law.parameters))
    if structure < 1e-3:
        found.append(
            f"the residuals still depend on {' and '.join(columns)} (F-test, p = {structure:.1e}): "
            f"the form {law.name!r} misses something in this table."
        )
    return tuple(found)


def _structure(logs: list[np.ndarray], residuals: np.ndarray, parameters: int) -> float:
    """P-value of a quadratic in the log columns explaining the residuals; 1 when there is too little to ask."""
    logs = [(x - x.mean()) / x.std() for x in logs if np.ptp(x) > 1e-6]
    terms = [np.ones_like(residuals), *logs]
    terms += [one * other for i, one in enumerate(logs) for other in logs[i:]]
    design = np.stack(terms, axis=1)
    rank = np.linalg.matrix_rank(design)
    freedom = len(residuals) - rank - parameters
    total = float(np.sum(residuals**2))
    if not logs or freedom < 3 or np.sqrt(total / len(residuals)) < 1e-9:
        return 1.0
    left = residuals - design @ np.linalg.lstsq(design, residuals, rcond=None)[0]
    explained = max(total - float(left @ left), 0.0)
    ratio = (explained / rank) / (float(left @ left) / freedom)
    return float(scipy.special.fdtrc(rank, freedom, ratio))
