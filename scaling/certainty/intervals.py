"""Intervals of a fit's parameters, and of what follows from them, by the method that keeps its promise on the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from jaxtyping import Shaped

from scaling.certainty.bootstrap import Draws, Resampling, bootstrap, laplace
from scaling.certainty.covariance import LARGE, MANY
from scaling.certainty.profile import Profile, profiles
from scaling.certainty.replicates import LackOfFit, Replicates
from scaling.display import Displayed, Page, Section, number
from scaling.estimate import LEVEL, Estimate
from scaling.fitting.fit import Fit
from scaling.fitting.quantities import Quantity, parameter


class Method(Enum):
    """How intervals are found."""

    BOOTSTRAP = "bootstrap"
    LAPLACE = "laplace"
    PROFILE = "profile"


@dataclass(frozen=True)
class Intervals(Displayed):
    """Values and their intervals.

    Attributes:
        fit: the fit.
        estimates: by name of the parameter or quantity.
        method: how they were found, in words.
        level: probability they claim.
        draws: of the parameters, for a method that has them.
        profiles: for the method that has them.
        noise: residuals against replicates of the table, where there are any.
    """

    fit: Fit = field(repr=False)
    estimates: Mapping[str, Estimate]
    method: str
    level: float
    draws: Draws | None = field(default=None, repr=False)
    profiles: tuple[Profile, ...] = field(default=(), repr=False)
    noise: LackOfFit | None = None

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def page(self) -> Page:
        """What is shown."""
        rows = tuple(
            (name, number(each.value), *(_end(end) for end in (each.low, each.high)))
            for name, each in self.estimates.items()
        )
        open_ = tuple(f"{each.words()}." for each in self.profiles if each.open_low or each.open_high)
        wrong = tuple(
            f"a fit with a lower objective was met while {each.quantity.name} was held: this fit is not the optimum."
            for each in self.profiles
            if each.improved
        )
        return Page(
            answer=f"{self.fit.law.text or self.fit.law.name}: intervals by {self.method}.",
            warnings=wrong + open_,
            sections=(Section("intervals", ("", "value", "low", "high"), rows),),
            notes=(str(self.noise),) if self.noise else (),
        )

    def to_dict(self) -> dict:
        """Name -> value, low, high, method; an end that was not found is None."""
        return {
            name: {k: v if np.isfinite(v) else None for k, v in each.to_dict().items()} | {"method": self.method}
            for name, each in self.estimates.items()
        }


def _end(value: float) -> str:
    return number(value) if np.isfinite(value) else ("−∞" if value < 0 else "∞")


def intervals(
    fit: Fit,
    quantities: Sequence[Quantity | str] | None = None,
    *,
    method: Method | None = None,
    resampling: Resampling | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
    replicates: Replicates | None = None,
) -> Intervals:
    """Intervals of parameters and derived quantities.

    Args:
        fit: the fit.
        quantities: names of parameters, and anything of `scaling.fitting.quantities`; every parameter unless said
            otherwise.
        method: unless said otherwise the bootstrap of whole runs from 100 runs on, which assumes least; the profile
            likelihood below, and for clusters, where resampling wears thin; Laplace beyond 8,192 runs, where it has
            nothing left to get wrong. The bootstrap whenever `resampling` is given.
        resampling: of the bootstrap.
        resamples: of the bootstrap.
        seed: of the draws.
        level: probability the intervals claim.
        clusters: one label a fitted run, where runs with one label share their noise.
        replicates: of the table, to report its noise beside the residuals'.

    Returns:
        The intervals.

    Raises:
        ValueError: no such parameter, or as for `bootstrap`.
    """
    if method is None:
        rows = len(fit.residuals)
        method = Method.LAPLACE if rows > LARGE else Method.BOOTSTRAP if rows >= MANY else Method.PROFILE
        if clusters is not None and rows <= LARGE:
            method = Method.PROFILE
        if resampling is not None:
            method = Method.BOOTSTRAP
    names = fit.law.names if quantities is None else quantities
    wanted = tuple(parameter(fit.law, each) if isinstance(each, str) else each for each in names)
    noise = replicates.lack_of_fit(fit) if replicates else None
    if method is Method.PROFILE:
        found = profiles(fit, wanted, level=level, clusters=clusters)
        estimates = {each.quantity.name: each.estimate for each in found}
        return Intervals(fit, estimates, f"profile likelihood, {level:.0%}", level, profiles=found, noise=noise)
    if method is Method.LAPLACE:
        draws = laplace(fit, seed=seed, level=level, clusters=clusters)
    else:
        draws = bootstrap(fit, resampling=resampling, resamples=resamples, seed=seed, level=level, clusters=clusters)
    estimates = {each.name: draws.quantity(each) for each in wanted}
    return Intervals(fit, estimates, draws.method, level, draws=draws, noise=noise)
