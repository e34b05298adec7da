"""Which parameters a table determines, in words: from profiles, interval widths, and how parameters move together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from jaxtyping import Shaped

from scaling.certainty.bootstrap import Bootstrap, bootstrap, laplace
from scaling.certainty.covariance import LARGE
from scaling.certainty.profile import Profile, profiles
from scaling.display import Displayed, Page, Section, number
from scaling.estimate import LEVEL, Estimate
from scaling.fitting.fit import Fit
from scaling.laws import Scale

_TOGETHER = 0.95  # correlation from which on two parameters are quoted together
_LOOSE = 4.0  # high / low of an interval from which on a value alone says little
_UNKNOWN = 100.0  # high / low from which on it says nothing
_DISAGREE = 2.0  # ratio of interval widths from which on methods disagree


class Standing(Enum):
    """What the table says of a parameter."""

    IDENTIFIED = "identified"
    LOOSE = "loosely identified"
    COMBINED = "identified only in combination"
    NOT_IDENTIFIED = "not identified"


@dataclass(frozen=True)
class Verdict:
    """Of one parameter.

    Attributes:
        parameter: its name.
        standing: the verdict.
        text: the verdict and its evidence, a sentence.
        intervals: by method: profile, Laplace and, where refits succeeded, bootstrap.
        partners: parameters it moves together with, and the correlation.
        profile: its profile.
    """

    parameter: str
    standing: Standing
    text: str
    intervals: Mapping[str, Estimate]
    partners: Mapping[str, float]
    profile: Profile = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "parameter": self.parameter,
            "standing": self.standing.value,
            "text": self.text,
            "intervals": {
                method: {k: v if np.isfinite(v) else None for k, v in each.to_dict().items()}
                for method, each in self.intervals.items()
            },
            "partners": dict(self.partners),
            "profile": self.profile.to_dict(),
        }


@dataclass(frozen=True)
class Identifiability(Displayed):
    """Of every parameter of a fit.

    Attributes:
        fit: the fit.
        verdicts: one a parameter.
        warnings: what the search met on the way.
    """

    fit: Fit = field(repr=False)
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Verdict:
        return self.verdicts[self.fit.law.names.index(name)]

    def page(self) -> Page:
        """What is shown."""
        sound = [each for each in self.verdicts if each.standing is Standing.IDENTIFIED]
        poor = [each for each in self.verdicts if each.standing is not Standing.IDENTIFIED]
        methods = list(dict.fromkeys(method for each in self.verdicts for method in each.intervals))
        rows = tuple(
            (each.parameter, number(self.fit.parameters[each.parameter]))
            + tuple(_range(each.intervals.get(method)) for method in methods)
            + (each.standing.value,)
            for each in self.verdicts
        )
        level = f"{self.verdicts[0].profile.level:.0%}"
        header = ("", "value", *(f"{method}, {level}" for method in methods), "verdict")
        return Page(
            answer=f"{len(sound)} of {len(self.verdicts)} parameters are identified by this table.",
            warnings=self.warnings + tuple(each.text for each in poor),
            sections=(Section("parameters", header, rows),),
            notes=tuple(each.text for each in sound),
        )

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "law": self.fit.law.name,
            "verdicts": {each.parameter: each.to_dict() for each in self.verdicts},
            "warnings": list(self.warnings),
        }


def _range(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    ends = estimate.low, estimate.high
    return " to ".join(number(end) if np.isfinite(end) else ("−∞" if end < 0 else "∞") for end in ends)


def identify(
    fit: Fit,
    *,
    draws: Bootstrap | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = LEVEL,
    clusters: Shaped[np.ndarray, " rows"] | None = None,
) -> Identifiability:
    """Say of every parameter whether the table determines it.

    A parameter is not identified when its profile stays below the threshold up to the end of the search on either side,
    or its interval spans a factor of 100. A loose one (a factor of 4) that moves together with another is identified in
    combination: the pair predicts well, neither alone means anything.

    Args:
        fit: the fit.
        draws: its bootstrap, if there is one already; beyond 8,192 runs none is made.
        resamples: of the bootstrap otherwise.
        seed: of that bootstrap.
        level: of the intervals.
        clusters: one label a fitted run, where runs with one label share their noise.

    Returns:
        The verdicts.

    Raises:
        ValueError: labels that do not fit the table.
    """
    found = profiles(fit, level=level, clusters=clusters)
    quadratic = laplace(fit, level=level, clusters=clusters)
    warnings = [
        f"a fit with a lower objective was met while {each.quantity.name} was held: this fit is not the optimum."
        for each in found
        if each.improved
    ]
    if draws is None and len(fit.residuals) <= LARGE:
        try:
            draws = bootstrap(fit, resamples=resamples, seed=seed, level=level, clusters=clusters)
        except ValueError as error:
            warnings.append(f"no bootstrap: {error}")
    correlation = quadratic.covariance.correlation if draws is None else _rank_correlation(draws)
    verdicts = []
    for index, (name, profile) in enumerate(zip(fit.law.names, found, strict=True)):
        estimates = {"profile": profile.estimate, "Laplace": quadratic.interval(name)}
        if draws is not None:
            estimates["bootstrap"] = draws.interval(name)
        partners = {
            other: float(correlation[index, i])
            for i, other in enumerate(fit.law.names)
            if i != index and abs(correlation[index, i]) >= _TOGETHER
        }
        standing, text = _judge(fit, index, profile, estimates, partners)
        verdicts.append(Verdict(name, standing, text, estimates, partners, profile))
    return Identifiability(fit, tuple(verdicts), tuple(warnings))


def _rank_correlation(draws: Bootstrap) -> np.ndarray:
    """Spearman's, which a few runaway resamples do not sway."""
    ranks = np.argsort(np.argsort(draws.samples, axis=0), axis=0).astype(np.float64)
    return np.corrcoef(ranks, rowvar=False).reshape(draws.samples.shape[1], -1)


def _judge(
    fit: Fit, index: int, profile: Profile, estimates: Mapping[str, Estimate], partners: Mapping[str, float]
) -> tuple[Standing, str]:
    name = fit.law.names[index]
    together = " and ".join(f"{other} (r = {r:.3f})" for other, r in partners.items())
    ratio = _ratio(fit, index, profile.estimate)
    if profile.open_low or profile.open_high or ratio >= _UNKNOWN:
        standing = Standing.NOT_IDENTIFIED
    elif ratio >= _LOOSE:
        standing = Standing.COMBINED if partners else Standing.LOOSE
    else:
        standing = Standing.IDENTIFIED
    said = standing.value + (f" with {together}" if standing is Standing.COMBINED else "")
    text = f"{name} is {said}: {profile.words()}"
    if standing is Standing.IDENTIFIED and partners:
        text += f"; it moves together with {together}: quote them together"
    elif partners:
        first = next(iter(partners))
        along = profile.parameters[:, fit.law.names.index(first)]
        text += f"; along it {first} goes from {along[0]:.4g} to {along[-1]:.4g}"
    apart = _disagreement(fit, index, estimates)
    return standing, text + (f"; {apart}" if apart and standing is not Standing.NOT_IDENTIFIED else "") + "."


def _ratio(fit: Fit, index: int, estimate: Estimate) -> float:
    """High over low, as if a linear parameter's relative width were that of a logarithm."""
    if fit.law.parameters[index].scale is Scale.LOG:
        return estimate.high / estimate.low if estimate.low > 0 else np.inf
    return float(np.exp(min((estimate.high - estimate.low) / max(abs(estimate.value), 1e-300), 700.0)))


def _disagreement(fit: Fit, index: int, estimates: Mapping[str, Estimate]) -> str:
    """A clause when intervals of different methods have very different widths."""
    width = {}
    for method, each in estimates.items():
        ends = np.array([each.low, each.high])
        with np.errstate(divide="ignore"):
            width[method] = float(np.ptp(np.log(ends) if fit.law.parameters[index].scale is Scale.LOG else ends))
    narrow, wide = min(width, key=width.get), max(width, key=width.get)
    if width[narrow] > 0 and width[wide] < _DISAGREE * width[narrow]:
        return ""
    return f"methods disagree, {wide} {_range(estimates[wide])} and {narrow} {_range(estimates[narrow])}"
