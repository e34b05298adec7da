"""Laws: functional forms of loss against parameters, data and compute, each a small value.

A law is a function of columns and parameters and a description of its parameters; the fitter needs nothing else, so
a law of your own is made the same way:

    mine = Law(
        name="mine",
        formula=lambda params, tokens, E, A, alpha: E + A * (params * tokens) ** -alpha,
        columns=("params", "tokens"),
        parameters=(offset("E"), coefficient("A"), exponent("alpha")),
        source="this notebook",
    )

Formulas are written with operators, or with `jax.numpy` where operators do not suffice: the fitter differentiates them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

import numpy as np
from jaxtyping import Float

from scaling.runs import nearest


class Scale(Enum):
    """How the fitter moves a parameter."""

    LINEAR = "linear"
    LOG = "log"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
        name: as in the formula's signature.
        low: lower bound.
        high: upper bound.
        scale: LOG for positive parameters of unknown magnitude, LINEAR otherwise.
        starts: starting values; the fitter tries the product over all parameters.
        unit: a column, if the parameter is a scale of that column: starts are then multiples of its geometric mean.
        linear: the prediction is linear in this parameter when the others are fixed, so its starting value is solved
            for instead of guessed (variable projection). All linear parameters zero must give zero.
        meaning: what it is, for reports.
    """

    name: str
    low: float
    high: float
    scale: Scale = Scale.LINEAR
    starts: tuple[float, ...] = (1.0,)
    unit: str | None = None
    linear: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class Law:
    """A functional form.

    Attributes:
        name: the name `get` finds it by.
        formula: columns and parameters, by name -> predicted loss, nats per token.
        columns: the columns it reads.
        parameters: what is fitted.
        source: paper and equation.
        text: the formula for people.
    """

    name: str
    formula: Callable[..., np.ndarray]
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    source: str
    text: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in the order of vectors."""
        return tuple(parameter.name for parameter in self.parameters)

    def __call__(
        self, columns: Mapping[str, Float[np.ndarray, "*rows"]], parameters: Mapping[str, float]
    ) -> Float[np.ndarray, "*rows"]:
        """Predicted loss, nats per token, in float64.

        Args:
            columns: at least the columns the law reads.
            parameters: a value for every parameter; arrays broadcast against the columns.

        Raises:
            ValueError: a column or a parameter is missing.
        """
        for kind, needed, given in (("column", self.columns, columns), ("parameter", self.names, parameters)):
            for name in needed:
                if name not in given:
                    raise ValueError(f"law {self.name!r} needs {kind} {name!r}" + nearest(name, map(str, given)))
        values = {name: np.asarray(columns[name], dtype=np.float64) for name in self.columns}
        values |= {name: np.asarray(parameters[name], dtype=np.float64) for name in self.names}
        predicted = self.formula(**values)
        if isinstance(predicted, np.ndarray | np.floating):
            return predicted
        import jax  # a formula written with jax.numpy: once more, in float64

        with jax.enable_x64(True):
            return np.asarray(self.formula(**values))


_EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)


def offset(name: str = "E", *, meaning: str = "irreducible loss") -> Parameter:
    """The loss that no scale removes: at least zero, linear in the prediction."""
    return Parameter(name, low=0.0, high=1e3, linear=True, meaning=meaning)


def coefficient(name: str, *, meaning: str = "") -> Parameter:
    """A positive factor of any magnitude, linear in the prediction."""
    return Parameter(name, low=1e-30, high=1e30, scale=Scale.LOG, linear=True, meaning=meaning)


def exponent(name: str, *, starts: tuple[float, ...] = _EXPONENTS, meaning: str = "") -> Parameter:
    """How fast the loss falls: between 0 and 3."""
    return Parameter(name, low=0.0, high=3.0, starts=starts, meaning=meaning)


def characteristic(name: str, *, unit: str, meaning: str = "") -> Parameter:
    """Kaplan's N_c, D_c, C_c: a scale in units of a column, where the power law would reach a loss of 1 nat."""
    return Parameter(name, low=1e-30, high=1e60, scale=Scale.LOG, starts=(1e2, 1e8), unit=unit, meaning=meaning)


@cache
def power(column: str) -> Law:
    """L = A x^-alpha: a power law without floor, on any column."""
    return Law(
        name=f"power-{column}",
        formula=lambda A, alpha, **x: A * x[column] ** -alpha,
        columns=(column,),
        parameters=(coefficient("A"), exponent("alpha")),
        source="Hestness et al. 2017, arXiv:1712.00409, section 2",
        text=f"L = A · {column}^-α",
    )


@cache
def power_with_floor(column: str) -> Law:
    """L = E + A x^-alpha: a power law above an irreducible loss, on any column."""
    return Law(
        name=f"floor-{column}",
        formula=lambda E, A, alpha, **x: E + A * x[column] ** -alpha,
        columns=(column,),
        parameters=(offset(), coefficient("A"), exponent("alpha")),
        source="Henighan et al. 2020, arXiv:2010.14701, eq. 1.1",
        text=f"L = E + A · {column}^-α",
    )


def _kaplan(name: str, column: str, symbol: str, equation: str) -> Law:
    scale, power_name = f"{symbol}_c", f"alpha_{symbol}"
    return Law(
        name=name,
        formula=lambda **x: (x[scale] / x[column]) ** x[power_name],
        columns=(column,),
        parameters=(characteristic(scale, unit=column), exponent(power_name, starts=(0.05, 0.2))),
        source=f"Kaplan et al. 2020, arXiv:2001.08361, eq. {equation}",
        text=f"L = ({symbol}_c / {column})^α_{symbol}",
    )


KAPLAN_N = _kaplan("kaplan-n", "params", "N", "1.1")
KAPLAN_D = _kaplan("kaplan-d", "tokens", "D", "1.2")
KAPLAN_C = _kaplan("kaplan-c", "flops", "C", "1.3")
KAPLAN_ND = Law(
    name="kaplan-nd",
    formula=lambda params, tokens, N_c, D_c, alpha_N, alpha_D: (
        ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D
    ),
    columns=("params", "tokens"),
    parameters=(
        characteristic("N_c", unit="params"),
        characteristic("D_c", unit="tokens"),
        Parameter("alpha_N", low=1e-4, high=3.0, starts=(0.05, 0.2)),
        Parameter("alpha_D", low=1e-4, high=3.0, starts=(0.05, 0.2)),
    ),
    source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5",
    text="L = [(N_c / N)^(α_N/α_D) + D_c / D]^α_D",
)
CHINCHILLA = Law(
    name="chinchilla",
    formula=lambda params, tokens, E, A, B, alpha, beta: E + A * params**-alpha + B * tokens**-beta,
    columns=("params", "tokens"),
    parameters=(
        offset(),
        coefficient("A", meaning="weight of the parameter term"),
        coefficient("B", meaning="weight of the data term"),
        exponent("alpha", meaning="exponent of parameters"),
        exponent("beta", meaning="exponent of tokens"),
    ),
    source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2 and 10",
    text="L = E + A / N^α + B / D^β",
)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        CHINCHILLA,
        KAPLAN_N,
        KAPLAN_D,
        KAPLAN_C,
        KAPLAN_ND,
        *(power(column) for column in ("params", "tokens", "flops")),
        *(power_with_floor(column) for column in ("params", "tokens", "flops")),
    )
}
"""Every law by name."""


def get(name: str) -> Law:
    """The law of that name.

    Raises:
        ValueError: no such law; the message offers the nearest.
    """
    if name not in LAWS:
        raise ValueError(f"no law {name!r}" + nearest(name, LAWS))
    return LAWS[name]
