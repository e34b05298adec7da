"""Precision: the laws of Kumar et al. 2024 (arXiv:2411.04330), bits as a part of the size."""

from dataclasses import replace

from scaling.laws.law import Law, Parameter, coefficient, exponent, namespace, offset, positive


def _quantized(params, tokens, bits_weights, bits_activations, bits_kv, E, A, B, alpha, beta, **parts):
    xp = namespace(params, tokens, alpha)
    effective = params
    for bits, part in ((bits_weights, "w"), (bits_activations, "a"), (bits_kv, "kv")):
        effective = effective * -xp.expm1(parts[f"n_{part}"] - bits / parts[f"gamma_{part}"])
    return E + A * effective**-alpha + B * tokens**-beta


def _bits(name: str, what: str) -> Parameter:
    return positive(name, starts=(1.0, 3.0), meaning=f"bits of {what} that divide the parameters lost by e")


def _shift(name: str, what: str) -> Parameter:
    return Parameter(name, low=-5.0, high=10.0, starts=(0.0,), meaning=f"log share of parameters lost at no {what}")


SHIFTED_PRECISION = Law(
    name="training-precision-shifted",
    formula=_quantized,
    columns=("params", "tokens", "bits_weights", "bits_activations", "bits_kv"),
    parameters=(
        offset(),
        coefficient("A", meaning="weight of the parameter term"),
        coefficient("B", meaning="weight of the data term"),
        exponent("alpha", starts=(0.3, 0.6), meaning="exponent of effective parameters"),
        exponent("beta", starts=(0.3, 0.6), meaning="exponent of tokens"),
        _bits("gamma_w", "weights"),
        _bits("gamma_a", "activations"),
        _bits("gamma_kv", "keys and values"),
        _shift("n_w", "bits of weights"),
        _shift("n_a", "bits of activations"),
        _shift("n_kv", "bits of keys and values"),
    ),
    source="Kumar et al. 2024, arXiv:2411.04330, finding 2 with the shifts of appendix K",
    text="L = E + A / N_eff^α + B / D^β,  N_eff = N Π (1 - exp(n_i - P_i / γ_i))",
)

TRAINING_PRECISION = replace(
    SHIFTED_PRECISION.fix(n_w=0.0, n_a=0.0, n_kv=0.0),
    name="training-precision",
    source="Kumar et al. 2024, arXiv:2411.04330, eq. 3 for weights, finding 2 for all three",
    text="L = E + A / N_eff^α + B / D^β,  N_eff = N Π (1 - exp(-P_i / γ_i))",
)

POST_TRAINING_PRECISION = Law(
    name="post-training-precision",
    formula=lambda params, tokens, bits_post, C_T, gamma_D, gamma_N, gamma_post: (
        C_T * tokens**gamma_D * params**-gamma_N * namespace(bits_post, gamma_post).exp(-bits_post / gamma_post)
    ),
    columns=("params", "tokens", "bits_post"),
    parameters=(
        coefficient("C_T", meaning="scale of the degradation, nats"),
        exponent("gamma_D", starts=(0.2, 0.5, 0.8), meaning="how it grows with training tokens"),
        exponent("gamma_N", starts=(0.2, 0.5, 0.8), meaning="how it falls with parameters"),
        positive("gamma_post", starts=(0.3, 1.0, 3.0), meaning="bits that divide it by e"),
    ),
    source="Kumar et al. 2024, arXiv:2411.04330, eq. 2",
    text="δ = C_T D^γ_D / N^γ_N exp(-P / γ)",
    target="loss_increase",
)

LAWS = (TRAINING_PRECISION, SHIFTED_PRECISION, POST_TRAINING_PRECISION)
