"""Broken power laws: Caballero et al. 2022 (arXiv:2210.14891)."""

from functools import cache

from scaling.laws.law import Law, Parameter, Scale, coefficient, exponent, namespace, offset, positive


@cache
def broken(column: str) -> Law:
    """A power law whose slope changes once, smoothly, on any column: c_0 before the break, c_0 + c_1 after.

    Fits with few rows past the break do not determine it; read the certificate.
    """

    def formula(a, b, c_0, c_1, d_1, f_1, **x):
        xp = namespace(a, d_1, *x.values())
        return a + b * x[column] ** -c_0 * xp.exp(-c_1 * f_1 * xp.logaddexp(0.0, xp.log(x[column] / d_1) / f_1))

    return Law(
        name=f"broken-{column}",
        formula=formula,
        columns=(column,),
        parameters=(
            offset("a", meaning="limit of the loss"),
            coefficient("b", meaning="scale before the break"),
            exponent("c_0", starts=(0.05, 0.3), meaning="slope before the break"),
            Parameter("c_1", low=-5.0, high=10.0, starts=(-0.2, 0.3), meaning="change of slope at the break"),
            positive("d_1", starts=(0.1, 1.0, 10.0), unit=column, meaning=f"{column} at the break"),
            Parameter(
                "f_1", low=0.01, high=5.0, scale=Scale.LOG, starts=(0.1, 0.5), meaning="smoothness; small is sharp"
            ),
        ),
        source="Caballero et al. 2022, arXiv:2210.14891, eq. 1 with one break",
        text=f"L = a + b x^-c_0 (1 + (x / d_1)^(1/f_1))^(-c_1 f_1),  x = {column}",
    )


LAWS = tuple(broken(column) for column in ("params", "tokens", "flops"))
