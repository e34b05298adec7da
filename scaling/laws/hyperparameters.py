"""Optimal learning rate and batch: DeepSeek LLM 2024 (arXiv:2401.02954), Step Law (Li et al. 2025, arXiv:2503.04715).

Their rows are optima: the best learning rate and batch found for one size and budget.
"""

from scaling.laws.law import Law, coefficient, exponent

_DEEPSEEK = "DeepSeek LLM 2024, arXiv:2401.02954, eq. 1"
_STEP = "Li et al. 2025, arXiv:2503.04715, eq. 1"


def _product(name: str, *factors: tuple[str, str, int, str], scale: str, **rest: str) -> Law:
    """A constant times powers of columns; a factor is its column, its exponent's name and sign, and what that is."""

    def formula(c, **x):
        for column, symbol, sign, _ in factors:
            c = c * x[column] ** (sign * x[symbol])
        return c

    exponents = (exponent(symbol, meaning=meaning) for _, symbol, _, meaning in factors)
    return Law(
        name=name,
        formula=formula,
        columns=tuple(column for column, *_ in factors),
        parameters=(coefficient("c", meaning=scale), *exponents),
        **rest,
    )


DEEPSEEK_RATE = _product(
    "deepseek-rate",
    ("flops", "gamma", -1, "how the rate falls with compute"),
    scale="learning rate at one FLOP",
    source=_DEEPSEEK,
    text="η = c C^-γ",
    target="learning_rate",
)
DEEPSEEK_BATCH = _product(
    "deepseek-batch",
    ("flops", "gamma", 1, "how the batch grows with compute"),
    scale="batch at one FLOP, tokens",
    source=_DEEPSEEK,
    text="B = c C^γ",
    target="batch_tokens",
)
STEP_RATE = _product(
    "step-rate",
    ("params", "gamma_N", -1, "how the rate falls with parameters"),
    ("tokens", "gamma_D", 1, "how the rate grows with tokens"),
    scale="scale of the learning rate",
    source=_STEP,
    text="η = c N^-γ_N D^γ_D",
    target="learning_rate",
)
STEP_BATCH = _product(
    "step-batch",
    ("tokens", "gamma", 1, "how the batch grows with training tokens"),
    scale="batch at one token, tokens",
    source=_STEP,
    text="B = c D^γ",
    target="batch_tokens",
)

LAWS = (DEEPSEEK_RATE, DEEPSEEK_BATCH, STEP_RATE, STEP_BATCH)
