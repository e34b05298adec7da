"""The law of Hoffmann et al. 2022 (arXiv:2203.15556)."""

from scaling.laws.law import Law, coefficient, exponent, offset

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

TIED = Law(
    name="chinchilla-tied",
    formula=lambda params, tokens, E, A, B, alpha: E + A * params**-alpha + B * tokens**-alpha,
    columns=("params", "tokens"),
    parameters=(
        offset(),
        coefficient("A", meaning="weight of the parameter term"),
        coefficient("B", meaning="weight of the data term"),
        exponent("alpha", meaning="exponent of parameters and of tokens, so that N and D grow together"),
    ),
    source="Muennighoff et al. 2023, arXiv:2305.16264, appendix A: eq. 2 of Hoffmann et al. with α = β",
    text="L = E + A / N^α + B / D^α",
)

LAWS = (CHINCHILLA, TIED)
