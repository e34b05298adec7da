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

LAWS = (CHINCHILLA,)
