"""Over-training and downstream error: the laws of Gadre et al. 2024 (arXiv:2403.08540)."""

from scaling.laws.law import Law, coefficient, exponent, namespace, offset, positive

OVERTRAINING = Law(
    name="overtraining",
    formula=lambda params, tokens, E, a, b, eta: (
        E + (a * (tokens / params) ** eta + b * (params / tokens) ** eta) * (6 * params * tokens) ** -eta
    ),
    columns=("params", "tokens"),
    parameters=(
        offset(),
        coefficient("a", meaning="weight of the term that grows with tokens per parameter"),
        coefficient("b", meaning="weight of the term that falls with tokens per parameter"),
        exponent("eta", starts=(0.05, 0.1, 0.2, 0.4), meaning="exponent of compute at a fixed ratio"),
    ),
    source="Gadre et al. 2024, arXiv:2403.08540, eq. 4; the tied Chinchilla law with A = a 6^-η, B = b 6^-η, α = 2η",
    text="L = E + (a M^η + b M^-η) C^-η,  M = D / N,  C = 6 N D",
)

ERROR = Law(
    name="downstream-error",
    formula=lambda loss, epsilon, k, gamma: epsilon - k * namespace(loss, gamma).exp(-gamma * loss),
    columns=("loss",),
    parameters=(
        positive("epsilon", starts=(0.6, 0.9), meaning="error of a model that learned nothing"),
        positive("k", starts=(1.0, 5.0), meaning="error that a loss of zero would remove"),
        positive("gamma", starts=(0.3, 0.8, 2.0), meaning="how fast error responds to loss, per nat"),
    ),
    source="Gadre et al. 2024, arXiv:2403.08540, eq. 5",
    text="Err = ε - k exp(-γ L)",
    target="error",
)

LAWS = (OVERTRAINING, ERROR)
