"""Mixtures of experts: routed (Clark et al. 2022) and fine-grained (Krajewski et al. 2024)."""

from scaling.laws.law import Law, Parameter, coefficient, exponent, namespace, offset, positive


def saturating(experts, E_start, E_max):
    """The expert count that the bilinear law sees: E_start at one expert, E_max at infinitely many."""
    return 1 / (1 / (experts - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max)


def _routed(params_active, experts, a, b, c, d, E_start, E_max):
    xp = namespace(params_active, experts, a)
    size, count = xp.log10(params_active), xp.log10(saturating(experts, E_start, E_max))
    return 10 ** (a * size + b * count + c * size * count + d)


def _slope(name: str, *starts: float, meaning: str) -> Parameter:
    return Parameter(name, low=-3.0, high=3.0, starts=starts, meaning=meaning)


ROUTED = Law(
    name="routed",
    formula=_routed,
    columns=("params_active", "experts"),
    parameters=(
        _slope("a", -0.1, meaning="slope of log10 loss in log10 N at one effective expert"),
        _slope("b", -0.1, meaning="slope in log10 E at N = 1"),
        _slope("c", 0.01, meaning="how much less experts help for each tenfold in N"),
        Parameter("d", low=-30.0, high=30.0, starts=(1.0,), meaning="log10 loss at N = E = 1"),
        positive("E_start", starts=(1.5, 4.0), meaning="effective experts of a dense model"),
        positive("E_max", starts=(100.0, 1000.0), meaning="effective experts that no number of them exceeds"),
    ),
    source="Clark et al. 2022, arXiv:2202.01169, eq. 1, Ê the saturating count",
    text="log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d",
)

FINE_GRAINED = Law(
    name="fine-grained",
    formula=lambda params, tokens, granularity, c, a, b, g, alpha, beta, gamma: (
        c + (g * granularity**-gamma + a) * params**-alpha + b * tokens**-beta
    ),
    columns=("params", "tokens", "granularity"),
    parameters=(
        offset("c"),
        coefficient("a", meaning="weight of the parameter term that granularity does not reduce"),
        coefficient("b", meaning="weight of the data term"),
        coefficient("g", meaning="weight of the parameter term at granularity 1 that it does reduce"),
        exponent("alpha", starts=(0.1, 0.2, 0.4), meaning="exponent of all non-embedding parameters"),
        exponent("beta", starts=(0.1, 0.2, 0.4), meaning="exponent of tokens"),
        exponent("gamma", starts=(0.3, 0.6, 1.2), meaning="exponent of granularity"),
    ),
    source="Krajewski et al. 2024, arXiv:2402.07871, eq. 9; N counts all experts, at a fixed expansion rate",
    text="L = c + (g / G^γ + a) / N^α + b / D^β",
)

LAWS = (ROUTED, FINE_GRAINED)
