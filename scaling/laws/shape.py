"""Width and depth: the laws of Gemstones (McLeish et al. 2025, arXiv:2502.06857), fitted as Hoffmann's approach 3."""

from scaling.laws.law import Law, coefficient, exponent, offset

_STARTS = (0.3, 0.8)

SHAPE = Law(
    name="shape",
    formula=lambda width, layers, tokens, E, A, B, C, alpha, beta, gamma: (
        E + A * width**-alpha + B * layers**-beta + C * tokens**-gamma
    ),
    columns=("width", "layers", "tokens"),
    parameters=(
        offset(),
        coefficient("A", meaning="weight of the width term"),
        coefficient("B", meaning="weight of the depth term"),
        coefficient("C", meaning="weight of the data term"),
        exponent("alpha", starts=_STARTS, meaning="exponent of width"),
        exponent("beta", starts=_STARTS, meaning="exponent of depth"),
        exponent("gamma", starts=_STARTS, meaning="exponent of tokens"),
    ),
    source="McLeish et al. 2025, arXiv:2502.06857, the width-depth law of its approach 3",
    text="L = E + A / w^α + B / d^β + C / T^γ",
)

SHAPE_AND_SIZE = Law(
    name="shape-and-size",
    formula=lambda width, layers, params, tokens, E, A, B, C, G, alpha, beta, gamma, delta: (
        E + A * width**-alpha + B * layers**-beta + C * tokens**-gamma + G * params**-delta
    ),
    columns=("width", "layers", "params", "tokens"),
    parameters=(
        *SHAPE.parameters[:4],
        coefficient("G", meaning="weight of the parameter term"),
        *SHAPE.parameters[4:],
        exponent("delta", starts=_STARTS, meaning="exponent of parameters"),
    ),
    source="McLeish et al. 2025, arXiv:2502.06857, the width-depth-parameters law of its approach 3",
    text="L = E + A / w^α + B / d^β + C / T^γ + G / N^δ",
)

LAWS = (SHAPE, SHAPE_AND_SIZE)
