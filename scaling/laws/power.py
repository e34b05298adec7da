"""Power laws of one column, without and with a floor."""

from functools import cache

from scaling.laws.law import Law, Parameter, coefficient, exponent, offset


def _term(column: str) -> tuple[Parameter, Parameter]:
    return coefficient("A", meaning=f"weight of {column}"), exponent("alpha", meaning=f"exponent of {column}")


@cache
def pure(column: str) -> Law:
    """L = A x^-alpha: a power law without floor, on any column."""
    return Law(
        name=f"power-{column}",
        formula=lambda A, alpha, **x: A * x[column] ** -alpha,
        columns=(column,),
        parameters=_term(column),
        source="Hestness et al. 2017, arXiv:1712.00409, section 2",
        text=f"L = A · {column}^-α",
    )


@cache
def floored(column: str) -> Law:
    """L = E + A x^-alpha: a power law above an irreducible loss, on any column."""
    return Law(
        name=f"floor-{column}",
        formula=lambda E, A, alpha, **x: E + A * x[column] ** -alpha,
        columns=(column,),
        parameters=(offset(), *_term(column)),
        source="Henighan et al. 2020, arXiv:2010.14701, eq. 1.1",
        text=f"L = E + A · {column}^-α",
    )


LAWS = tuple(form(column) for form in (pure, floored) for column in ("params", "tokens", "flops"))
