"""What a law is: a function of columns and parameters, with a description of its parameters.

The fitter needs nothing else, so a law of your own is made as those of this package are:

    mine = Law(
        name="mine",
        formula=lambda params, tokens, E, A, alpha: E + A * (params * tokens) ** -alpha,
        columns=("params", "tokens"),
        parameters=(offset("E"), coefficient("A"), exponent("alpha")),
        source="this notebook",
    )

Formulas are written with operators, or with `jax.numpy` where operators do not suffice: the fitter differentiates them.
`namespace` gives numpy for plain arrays and `jax.numpy` for traced ones, so that a formula needs no jax to be read off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import ModuleType

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
        formula: columns and parameters, by name -> the predicted target; for losses nats per token.
        columns: the columns it reads; a column has one number a row, or a row of numbers a row, as `array` makes them.
        parameters: what is fitted.
        source: paper and equation.
        text: the formula for people.
        target: the column it predicts.
        unchecked: those of the columns that need not be positive numbers: zero is a value like any other there, or a
            cell is a row of numbers.
    """

    name: str
    formula: Callable[..., np.ndarray]
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    source: str
    text: str = ""
    target: str = "loss"
    unchecked: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in the order of vectors."""
        return tuple(parameter.name for parameter in self.parameters)

    def __call__(
        self, columns: Mapping[str, Float[np.ndarray, "..."]], parameters: Mapping[str, float]
    ) -> Float[np.ndarray, "*rows"]:
        """The predicted target (loss in nats per token) in float64.

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
        values = {name: array(columns[name]) for name in self.columns}
        values |= {name: np.asarray(parameters[name], dtype=np.float64) for name in self.names}
        predicted = self.formula(**values)
        if isinstance(predicted, np.ndarray | np.floating):
            return predicted
        import jax  # a formula written with jax.numpy: once more, in float64

        with jax.enable_x64(True):
            return np.asarray(self.formula(**values))

    def fix(self, **values: float) -> "Law":
        """This law with some parameters held at known values, as when a paper takes them from an earlier fit.

        Where a linear parameter is held, those left are no longer solved for but started from `Parameter.starts`.

        Raises:
            ValueError: a name is not a parameter, or nothing is left to fit.
        """
        for name in values:
            if name not in self.names:
                raise ValueError(f"law {self.name!r} has no parameter {name!r}" + nearest(name, self.names))
        held = any(parameter.linear for parameter in self.parameters if parameter.name in values)
        free = tuple(
            replace(parameter, linear=parameter.linear and not held)
            for parameter in self.parameters
            if parameter.name not in values
        )
        if not free:
            raise ValueError(f"every parameter of law {self.name!r} is held; at least one must be left to fit")
        constants = {name: float(value) for name, value in values.items()}
        return replace(self, formula=lambda **x: self.formula(**x, **constants), parameters=free)


def array(values: object) -> Float[np.ndarray, "..."]:
    """A column as float64: one number a row, or, where a cell holds an array, one row of numbers a row."""
    values = np.asarray(values)
    return np.stack(values).astype(np.float64) if values.dtype == object else values.astype(np.float64)


def namespace(*values: object) -> ModuleType:
    """The array library of a formula's arguments: `jax.numpy` when one is traced, else numpy."""
    for value in values:
        library = value.__array_namespace__() if hasattr(value, "__array_namespace__") else np
        if library is not np:
            return library
    return np


_EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)


def offset(name: str = "E", *, starts: tuple[float, ...] | None = None, meaning: str = "irreducible loss") -> Parameter:
    """The loss that no scale removes: at least zero; solved for, unless `starts` say where to look."""
    return Parameter(name, low=0.0, high=1e3, starts=starts or (1.0,), linear=starts is None, meaning=meaning)


def coefficient(name: str, *, meaning: str = "") -> Parameter:
    """A positive factor of any magnitude, linear in the prediction."""
    return Parameter(name, low=1e-30, high=1e30, scale=Scale.LOG, linear=True, meaning=meaning)


def positive(name: str, *, starts: tuple[float, ...], meaning: str = "", unit: str | None = None) -> Parameter:
    """A positive number of any magnitude that the prediction is not linear in."""
    return Parameter(name, low=1e-30, high=1e60, scale=Scale.LOG, starts=starts, unit=unit, meaning=meaning)


def exponent(name: str, *, starts: tuple[float, ...] = _EXPONENTS, meaning: str = "") -> Parameter:
    """How fast the loss falls: between 0 and 3."""
    return Parameter(name, low=0.0, high=3.0, starts=starts, meaning=meaning)


def characteristic(name: str, *, unit: str, meaning: str = "") -> Parameter:
    """Kaplan's N_c, D_c, C_c: a scale in units of a column, where the power law would reach a loss of 1 nat."""
    return Parameter(name, low=1e-30, high=1e60, scale=Scale.LOG, starts=(1e2, 1e8), unit=unit, meaning=meaning)
