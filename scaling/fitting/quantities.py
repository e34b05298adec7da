"""What follows from a fitted law: the optimum at a budget, its exponents, ratios; each a function of the parameters.

A `Quantity` is evaluated at one set of parameters or at many draws of them at once, so bootstrap, profile likelihood
and plan ask the same question in the same words.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scaling.fitting.powerlaw import Compute
from scaling.laws import CHINCHILLA, KAPLAN_ND, Law
from scaling.laws.chinchilla import TIED
from scaling.runs import nearest

Parameters = Mapping[str, float | Float[np.ndarray, " draws"]]

_COARSE = 160  # sizes between one parameter and one token at which the numeric optimum is first looked for
_GOLDEN = (np.sqrt(5) - 1) / 2
_ROUNDS = 45  # of golden section: the bracket shrinks by 4e-10, below what a minimum determines in float64
_STEP = 0.1  # in log C, of the derivative that gives a local exponent

# Laws that rise with A / N^alpha + B / D^beta -> log (A / B), alpha and beta.
_TWO_POWERS: dict[Law, Callable[[Parameters], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    CHINCHILLA: lambda p: (np.log(p["A"] / p["B"]), p["alpha"], p["beta"]),
    TIED: lambda p: (np.log(p["A"] / p["B"]), p["alpha"], p["alpha"]),
    KAPLAN_ND: lambda p: (
        p["alpha_N"] / p["alpha_D"] * np.log(p["N_c"]) - np.log(p["D_c"]),
        p["alpha_N"] / p["alpha_D"],
        np.ones_like(p["alpha_D"]),
    ),
}


def optimum(
    law: Law,
    parameters: Parameters,
    cost: Compute,
    flops: float,
    *,
    columns: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, tokens and loss where a law of N and D is lowest at a budget.

    For a law that rises with A / N^alpha + B / D^beta, as Chinchilla's does, in closed form (Hoffmann et al. 2022,
    arXiv:2203.15556, eq. 4, with C = k N^g D in place of C = 6 N D): setting the derivative along the budget to zero
    gives N^(alpha + g beta) = (alpha A / (g beta B)) (C / k)^beta. For any other law by a grid and golden section in
    log N.

    Args:
        law: reads `params` and `tokens`.
        parameters: values, or draws; draws give an array of optima.
        cost: what a token costs.
        flops: the budget, in the FLOPs `cost` was read from.
        columns: values of what else the law reads, `{"unique_tokens": 1e9}`.

    Returns:
        N, D and the law there; nan where the law has no minimum between one parameter and one token.

    Raises:
        ValueError: the law does not read N and D, or a further column has no value.
    """
    for name in ("params", "tokens"):
        if name not in law.columns:
            raise ValueError(f"law {law.name!r} does not read {name!r}, so it has no optimal size at a budget")
    fixed = {name: value for name, value in (columns or {}).items() if name in law.columns}
    for name in law.columns:
        if name not in ("params", "tokens", *fixed):
            raise ValueError(
                f"the optimum of law {law.name!r} needs a value of {name!r}" + nearest(name, columns or ())
            )
    draws = {name: np.asarray(parameters[name], np.float64) for name in law.names}
    if law in _TWO_POWERS:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, alpha, beta = _TWO_POWERS[law](draws)
            log_n = np.log(alpha / (cost.g * beta)) + ratio + beta * np.log(flops / cost.k)
            params = np.exp(log_n / (alpha + cost.g * beta))
    else:
        params = _lowest(lambda n: law({"params": n, "tokens": cost.tokens(flops, n)} | fixed, draws), cost, flops)
    tokens = cost.tokens(flops, params)
    return params, tokens, law({"params": params, "tokens": tokens} | fixed, draws)


def _lowest(loss: Callable[[np.ndarray], np.ndarray], cost: Compute, flops: float) -> np.ndarray:
    """N at the minimum of a loss along a budget, for every draw at once."""
    with np.errstate(all="ignore"):
        grid = np.linspace(0.0, np.log(flops / cost.k) / cost.g, _COARSE)
        coarse = np.stack(np.broadcast_arrays(*(loss(np.exp(x)) for x in grid)))
        coarse = np.where(np.isfinite(coarse), coarse, np.inf)
        best = np.argmin(coarse, axis=0)
        inside = (best > 0) & (best < _COARSE - 1)
        low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, _COARSE - 1)]
        for _ in range(_ROUNDS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            down = loss(np.exp(left)) < loss(np.exp(right))
            low, high = np.where(down, low, left), np.where(down, right, high)
        return np.where(inside, np.exp((low + high) / 2), np.nan)


@dataclass(frozen=True)
class Quantity:
    """Something a law's parameters determine.

    Attributes:
        name: short, with what it depends on, such as "N* at 5.76e+23".
        text: what it is, for people.
        function: parameters by name, values or draws -> the quantity.
        positive: of unknown magnitude, so that intervals are made in the logarithm.
    """

    name: str
    text: str
    function: Callable[[Parameters], np.ndarray]
    positive: bool = False

    def __call__(self, parameters: Parameters) -> np.ndarray:
        """The value, or one for every draw."""
        return np.asarray(self.function(parameters))


def parameter(law: Law, name: str) -> Quantity:
    """One of the law's own parameters.

    Raises:
        ValueError: no such parameter; the message offers the nearest.
    """
    for each in law.parameters:
        if each.name == name:
            return Quantity(name, each.meaning or name, lambda p: p[name], positive=each.low > 0)
    raise ValueError(f"law {law.name!r} has no parameter {name!r}" + nearest(name, law.names))


def optimal_params(law: Law, cost: Compute, flops: float, *, columns: Mapping[str, float] | None = None) -> Quantity:
    """N* at a budget."""
    text = f"parameters of the lowest loss at {flops:.3g} FLOPs"
    return Quantity(f"N* at {flops:.3g}", text, lambda p: optimum(law, p, cost, flops, columns=columns)[0], True)


def optimal_tokens(law: Law, cost: Compute, flops: float, *, columns: Mapping[str, float] | None = None) -> Quantity:
    """D* at a budget."""
    text = f"tokens of the lowest loss at {flops:.3g} FLOPs"
    return Quantity(f"D* at {flops:.3g}", text, lambda p: optimum(law, p, cost, flops, columns=columns)[1], True)


def tokens_per_param(law: Law, cost: Compute, flops: float, *, columns: Mapping[str, float] | None = None) -> Quantity:
    """D* / N* at a budget."""

    def ratio(p):
        params, tokens, _ = optimum(law, p, cost, flops, columns=columns)
        return tokens / params

    return Quantity(f"D*/N* at {flops:.3g}", f"tokens a parameter at the optimum of {flops:.3g} FLOPs", ratio, True)


def optimal_loss(law: Law, cost: Compute, flops: float, *, columns: Mapping[str, float] | None = None) -> Quantity:
    """L* at a budget."""
    text = f"lowest loss at {flops:.3g} FLOPs"
    return Quantity(f"L* at {flops:.3g}", text, lambda p: optimum(law, p, cost, flops, columns=columns)[2], True)


def loss_at(law: Law, columns: Mapping[str, float]) -> Quantity:
    """The law at one point."""
    at = ", ".join(f"{name} {value:.3g}" for name, value in columns.items())
    return Quantity(f"L at {at}", f"expected loss at {at}", lambda p: law(columns, p), True)


def params_exponent(law: Law, cost: Compute, flops: float | None = None) -> Quantity:
    """A of N* ~ C^a: beta / (alpha + g beta) for the Chinchilla law; for others the local slope at a budget.

    Raises:
        ValueError: another law than Chinchilla's and no budget.
    """
    return _exponent("a", "exponent of the optimal parameters in compute", 0, law, cost, flops)


def tokens_exponent(law: Law, cost: Compute, flops: float | None = None) -> Quantity:
    """B of D* ~ C^b: alpha / (alpha + g beta) for the Chinchilla law; for others the local slope at a budget.

    Raises:
        ValueError: another law than Chinchilla's and no budget.
    """
    return _exponent("b", "exponent of the optimal tokens in compute", 1, law, cost, flops)


def _exponent(name: str, text: str, which: int, law: Law, cost: Compute, flops: float | None) -> Quantity:
    if law is CHINCHILLA:
        on_top = ("beta", "alpha")[which]
        return Quantity(name, text, lambda p: p[on_top] / (p["alpha"] + cost.g * np.asarray(p["beta"])))
    if flops is None:
        raise ValueError(f"the exponent {name} of law {law.name!r} changes with compute; name a budget")

    def slope(p):
        above, below = (np.log(optimum(law, p, cost, flops * np.exp(sign * _STEP))[which]) for sign in (1, -1))
        return (above - below) / (2 * _STEP)

    return Quantity(f"{name} at {flops:.3g}", f"{text} at {flops:.3g} FLOPs", slope)
