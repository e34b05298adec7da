"""Optimal learning rate and batch: DeepSeek LLM 2024 (arXiv:2401.02954), Step Law (Li et al. 2025, arXiv:2503.04715).

Their rows are optima: the best learning rate and batch found for one size and budget.
"""

from scaling.laws.law import Law, coefficient, exponent

_DEEPSEEK = "DeepSeek LLM 2024, arXiv:2401.02954, eq. 1"
_STEP = "Li et al. 2025, arXiv:2503.04715, eq. 1"

DEEPSEEK_RATE = Law(
    name="deepseek-rate",
    formula=lambda flops, c, gamma: c * flops**-gamma,
    columns=("flops",),
    parameters=(
        coefficient("c", meaning="learning rate at one FLOP"),
        exponent("gamma", meaning="how the rate falls with compute"),
    ),
    source=_DEEPSEEK,
    text="η = c C^-γ",
    target="learning_rate",
)
DEEPSEEK_BATCH = Law(
    name="deepseek-batch",
    formula=lambda flops, c, gamma: c * flops**gamma,
    columns=("flops",),
    parameters=(
        coefficient("c", meaning="batch at one FLOP, tokens"),
        exponent("gamma", meaning="how the batch grows with compute"),
    ),
    source=_DEEPSEEK,
    text="B = c C^γ",
    target="batch_tokens",
)
STEP_RATE = Law(
    name="step-rate",
    formula=lambda params, tokens, c, gamma_N, gamma_D: c * params**-gamma_N * tokens**gamma_D,
    columns=("params", "tokens"),
    parameters=(
        coefficient("c", meaning="scale of the learning rate"),
        exponent("gamma_N", meaning="how the rate falls with parameters"),
        exponent("gamma_D", meaning="how the rate grows with tokens"),
    ),
    source=_STEP,
    text="η = c N^-γ_N D^γ_D",
    target="learning_rate",
)
STEP_BATCH = Law(
    name="step-batch",
    formula=lambda tokens, c, gamma: c * tokens**gamma,
    columns=("tokens",),
    parameters=(
        coefficient("c", meaning="batch at one token, tokens"),
        exponent("gamma", meaning="how the batch grows with training tokens"),
    ),
    source=_STEP,
    text="B = c D^γ",
    target="batch_tokens",
)

LAWS = (DEEPSEEK_RATE, DEEPSEEK_BATCH, STEP_RATE, STEP_BATCH)
