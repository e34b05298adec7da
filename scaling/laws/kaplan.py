"""The laws of Kaplan et al. 2020 (arXiv:2001.08361)."""

from scaling.laws.law import Law, Parameter, characteristic, exponent


def _kaplan(name: str, column: str, symbol: str, equation: str) -> Law:
    scale, power_name = f"{symbol}_c", f"alpha_{symbol}"
    return Law(
        name=name,
        formula=lambda **x: (x[scale] / x[column]) ** x[power_name],
        columns=(column,),
        parameters=(characteristic(scale, unit=column), exponent(power_name, starts=(0.05, 0.2))),
        source=f"Kaplan et al. 2020, arXiv:2001.08361, eq. {equation}",
        text=f"L = ({symbol}_c / {column})^α_{symbol}",
    )


KAPLAN_N = _kaplan("kaplan-n", "params", "N", "1.1")
KAPLAN_D = _kaplan("kaplan-d", "tokens", "D", "1.2")
KAPLAN_C = _kaplan("kaplan-c", "flops", "C", "1.3")
KAPLAN_ND = Law(
    name="kaplan-nd",
    formula=lambda params, tokens, N_c, D_c, alpha_N, alpha_D: (
        ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D
    ),
    columns=("params", "tokens"),
    parameters=(
        characteristic("N_c", unit="params"),
        characteristic("D_c", unit="tokens"),
        Parameter("alpha_N", low=1e-4, high=3.0, starts=(0.05, 0.2)),
        Parameter("alpha_D", low=1e-4, high=3.0, starts=(0.05, 0.2)),
    ),
    source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5",
    text="L = [(N_c / N)^(α_N/α_D) + D_c / D]^α_D",
)

LAWS = (KAPLAN_N, KAPLAN_D, KAPLAN_C, KAPLAN_ND)
