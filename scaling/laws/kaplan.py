"""The laws of Kaplan et al. 2020 (arXiv:2001.08361): losses in nats, N without embeddings."""

import numpy as np
from jaxtyping import Float

from scaling.laws.law import Law, Parameter, characteristic, exponent, positive


def _kaplan(name: str, column: str, symbol: str, equation: str) -> Law:
    scale, power_name = f"{symbol}_c", f"alpha_{symbol}"
    return Law(
        name=name,
        formula=lambda **x: (x[scale] / x[column]) ** x[power_name],
        columns=(column,),
        parameters=(
            characteristic(scale, unit=column, meaning=f"{column} at which the law reaches 1 nat"),
            exponent(power_name, starts=(0.05, 0.2), meaning=f"exponent of {column}"),
        ),
        source=f"Kaplan et al. 2020, arXiv:2001.08361, eq. {equation}",
        text=f"L = ({symbol}_c / {column})^α_{symbol}",
    )


def _gentle(name: str, meaning: str) -> Parameter:
    """An exponent that others are divided by: never zero."""
    return Parameter(name, low=1e-4, high=3.0, starts=(0.05, 0.2), meaning=meaning)


KAPLAN_N = _kaplan("kaplan-n", "params", "N", "1.1")
KAPLAN_D = _kaplan("kaplan-d", "tokens", "D", "1.2")
KAPLAN_C = _kaplan("kaplan-c", "flops", "C", "3.3")
KAPLAN_CMIN = _kaplan("kaplan-cmin", "flops_min", "C", "1.3")
KAPLAN_ND = Law(
    name="kaplan-nd",
    formula=lambda params, tokens, N_c, D_c, alpha_N, alpha_D: (
        ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D
    ),
    columns=("params", "tokens"),
    parameters=(
        characteristic("N_c", unit="params", meaning="params at which the law reaches 1 nat with unlimited tokens"),
        characteristic("D_c", unit="tokens", meaning="tokens at which the law reaches 1 nat with unlimited params"),
        _gentle("alpha_N", "exponent of params with unlimited tokens"),
        _gentle("alpha_D", "exponent of tokens with unlimited params"),
    ),
    source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5",
    text="L = [(N_c / N)^(α_N/α_D) + D_c / D]^α_D",
)
KAPLAN_NS = Law(
    name="kaplan-ns",
    formula=lambda params, steps_min, N_c, S_c, alpha_N, alpha_S: (
        (N_c / params) ** alpha_N + (S_c / steps_min) ** alpha_S
    ),
    columns=("params", "steps_min"),
    parameters=(
        characteristic("N_c", unit="params", meaning="params at which the law reaches 1 nat with unlimited steps"),
        positive("S_c", starts=(1e-3, 1.0), unit="steps_min", meaning="steps at which the step term is 1 nat"),
        exponent("alpha_N", starts=(0.05, 0.2), meaning="exponent of params"),
        exponent("alpha_S", starts=(0.4, 0.8), meaning="exponent of steps"),
    ),
    source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.6 (infinite data; steps by eq. 5.4)",
    text="L = (N_c / N)^α_N + (S_c / S_min)^α_S",
)
KAPLAN_BATCH = Law(
    name="kaplan-batch",
    formula=lambda loss, B_star, alpha_B: B_star * loss ** (-1 / alpha_B),
    columns=("loss",),
    parameters=(
        positive("B_star", starts=(1e6, 1e9), meaning="critical batch at a loss of 1 nat, tokens"),
        Parameter("alpha_B", low=1e-2, high=3.0, starts=(0.1, 0.2, 0.5), meaning="inverse power of the loss"),
    ),
    source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.4 and 5.3",
    text="B_crit = B_* / L^(1/α_B)",
    target="critical_batch",
)

LAWS = (KAPLAN_N, KAPLAN_D, KAPLAN_C, KAPLAN_CMIN, KAPLAN_ND, KAPLAN_NS, KAPLAN_BATCH)


def at_any_batch(
    *,
    steps: Float[np.ndarray, "*rows"],
    flops: Float[np.ndarray, "*rows"],
    batch_tokens: Float[np.ndarray, "*rows"],
    critical_batch: Float[np.ndarray, "*rows"],
) -> dict[str, Float[np.ndarray, "*rows"]]:
    """The columns `steps_min` and `flops_min`: what a loss would have cost at very large and at very small batches.

    S_min = S / (1 + B_crit / B) (eq. 5.4) and C_min = C / (1 + B / B_crit) (eq. 5.5), with B_crit at the loss reached.

    Args:
        steps: optimizer steps taken.
        flops: FLOPs spent.
        batch_tokens: tokens a step, B.
        critical_batch: B_crit, tokens, as `KAPLAN_BATCH` gives it from the loss.
    """
    share = np.asarray(critical_batch, np.float64) / batch_tokens
    return {"steps_min": steps / (1 + share), "flops_min": flops / (1 + 1 / share)}
