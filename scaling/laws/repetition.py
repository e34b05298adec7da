"""The data-constrained law of Muennighoff et al. 2023 (arXiv:2305.16264): what repeated tokens are worth."""

from scaling.laws.law import Law, exponent, namespace, offset, positive

_EXPONENTS = (0.25, 0.4)


def effective(total, unique, half_life):
    """Unique units that are worth as much as `total` of which only `unique` differ.

    U + U R* (1 - exp(-R / R*)) with R = total / unique - 1 repetitions: each is worth less than the one before, and all
    together never more than R* fresh ones. Repeated little, as good as fresh; R* to infinity, always.
    """
    xp = namespace(total, unique, half_life)
    return unique * (1 + half_life * -xp.expm1(-(total / unique - 1) / half_life))


def _data_constrained(params, tokens, unique_tokens, E, A, B, alpha, beta, R_N, R_D):
    xp = namespace(params, tokens, unique_tokens, A, B, alpha, beta)
    balance = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    useful = xp.minimum(balance * (balance * unique_tokens) ** (beta / alpha), params)
    unique = xp.minimum(unique_tokens, tokens)
    return E + A * effective(params, useful, R_N) ** -alpha + B * effective(tokens, unique, R_D) ** -beta


DATA_CONSTRAINED = Law(
    name="data-constrained",
    formula=_data_constrained,
    columns=("params", "tokens", "unique_tokens"),
    parameters=(
        offset("E", starts=(1.5,)),
        positive("A", starts=(3e1, 3e2, 3e3), meaning="weight of the parameter term"),
        positive("B", starts=(3e1, 3e2, 3e3), meaning="weight of the data term"),
        exponent("alpha", starts=_EXPONENTS, meaning="exponent of effective parameters"),
        exponent("beta", starts=_EXPONENTS, meaning="exponent of effective tokens"),
        positive("R_N", starts=(5.0,), meaning="R*_N: excess parameters are worth at most this many times the useful"),
        positive("R_D", starts=(3.0, 30.0), meaning="R*_D: repetitions are worth at most this many fresh passes"),
    ),
    source="Muennighoff et al. 2023, arXiv:2305.16264, section 3.1 and appendix A",
    text="L = E + A / N'^α + B / D'^β,  D' = U + U R*_D (1 - exp(-(D/U - 1) / R*_D)),  N' likewise",
)

LAWS = (DATA_CONSTRAINED,)
