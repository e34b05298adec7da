"""Compute-optimal parameters and tokens when more is given than a training budget.

Unique data that must be repeated, tokens that will be served over the model's lifetime, a memory the model must fit,
a size or a number of tokens that is already decided.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scaling.display import count
from scaling.fitting import quantities
from scaling.fitting.powerlaw import Compute
from scaling.fitting.quantities import Parameters
from scaling.laws import Law
from scaling.laws.repetition import effective

REPEATS = 15.387756
"""R*_D of Muennighoff et al. 2023 (arXiv:2305.16264): the discount of repeats for laws that know nothing of them."""

INFERENCE = 1 / 3
"""Compute of a served token over that of a training token: 2N against 6N (Sardana et al. 2023, arXiv:2401.00448)."""

_GRID = 65
_ROUNDS = 7  # each divides the bracket by 32
_UNREACHABLE = 1e9  # tokens a parameter; a loss that needs more is out of reach at that size
_BISECTIONS = 50


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What is given besides a budget.

    Attributes:
        unique_tokens: no more different tokens than this; further training tokens repeat them.
        served_tokens: tokens of inference over the model's lifetime. The budget is then what training and inference
            cost together.
        memory: bytes the parameters must fit in.
        bytes_per_param: 2 for bfloat16.
        params: N is this.
        tokens: D is this.
    """

    unique_tokens: float | None = None
    served_tokens: float | None = None
    memory: float | None = None
    bytes_per_param: float = 2.0
    params: float | None = None
    tokens: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"the constraint {name} is a positive number, not {value!r}")
        if self.params is not None and self.tokens is not None:
            raise ValueError("params and tokens cannot both be fixed: with a budget one follows from the other")
        if self.params is not None and self.params > self.most_params:
            raise ValueError(
                f"{count(self.params)} parameters of {self.bytes_per_param:g} bytes do not fit {self.memory:.3g} bytes"
            )

    @property
    def most_params(self) -> float:
        """The largest N that fits the memory."""
        return np.inf if self.memory is None else self.memory / self.bytes_per_param

    @property
    def free(self) -> bool:
        """Whether nothing is given."""
        return self == Constraints(bytes_per_param=self.bytes_per_param)

    def tokens_for(self, cost: Compute, flops, params):
        """Training tokens that a budget buys at a size, once its inference is paid for; negative where it cannot be."""
        return cost.tokens(flops, params) - INFERENCE * (self.served_tokens or 0.0)

    def flops_for(self, cost: Compute, params, tokens):
        """What training, and inference where tokens are served, cost together."""
        return cost.flops(params, tokens + INFERENCE * (self.served_tokens or 0.0))

    def columns(self, law: Law, params, tokens) -> dict[str, np.ndarray]:
        """What a law reads for N and D under these constraints.

        Unique tokens are a column of the law if it reads them; otherwise D is replaced by the number of fresh tokens
        that repeated ones are worth, as published.
        """
        if self.unique_tokens is None:
            return {"params": params, "tokens": tokens} | ({"unique_tokens": tokens} if _reads_unique(law) else {})
        if _reads_unique(law):
            return {"params": params, "tokens": tokens, "unique_tokens": np.minimum(tokens, self.unique_tokens)}
        fresh = np.minimum(tokens, self.unique_tokens)
        return {"params": params, "tokens": effective(tokens, fresh, REPEATS)}

    def describe(self, law: Law) -> list[str]:
        """What was assumed, in sentences."""
        said = []
        if self.unique_tokens is not None and _reads_unique(law):
            said.append(f"{count(self.unique_tokens)} unique tokens; what repeats are worth is the law's own fit.")
        elif self.unique_tokens is not None:
            said.append(
                f"{count(self.unique_tokens)} unique tokens. The law fitted knows nothing of repeats, so repeated "
                f"tokens are discounted as Muennighoff et al. 2023 published (R*_D = {REPEATS:.3g}), a constant that "
                "their own runs leave uncertain; excess parameters are not discounted. Where a table has "
                "unique_tokens, law data-constrained fits both."
            )
        if self.served_tokens is not None:
            said.append(
                f"The budget pays for training and for serving {count(self.served_tokens)} tokens at a third of a "
                "training token's compute each."
            )
        if self.memory is not None:
            said.append(
                f"At most {count(self.most_params)} parameters fit {self.memory:.3g} bytes at "
                f"{self.bytes_per_param:g} bytes each."
            )
        for name, value in (("N", self.params), ("D", self.tokens)):
            if value is not None:
                said.append(f"{name} is fixed at {count(value)}, so this is no free optimum.")
        return said


@dataclass(frozen=True)
class Setting:
    """What a budget is planned with.

    Attributes:
        law: reads `params` and `tokens`.
        cost: what a token costs.
        constraints: what else is given.
        columns: values of what else the law reads.
    """

    law: Law
    cost: Compute
    constraints: Constraints
    columns: Mapping[str, float]

    def read(self, params, tokens) -> dict[str, np.ndarray]:
        """The law's columns at some N and D."""
        return self.constraints.columns(self.law, params, tokens) | dict(self.columns)

    def optimum(self, parameters: Parameters, flops: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, tokens and loss of the lowest loss at a budget.

        Args:
            parameters: values, or draws; draws give arrays.
            flops: the budget, in the FLOPs `cost` was read from.

        Raises:
            ValueError: the budget does not pay for what is given, or the law does not read N and D.
        """
        law, cost, given = self.law, self.cost, self.constraints
        if given.free and not _reads_unique(law):
            return quantities.optimum(law, parameters, cost, flops, columns=self.columns)
        draws = {name: np.asarray(parameters[name], np.float64) for name in law.names}
        shape = np.broadcast_shapes(*(each.shape for each in draws.values()))
        served = INFERENCE * (given.served_tokens or 0.0)

        def loss(params):
            tokens = given.tokens_for(cost, flops, params)
            with np.errstate(all="ignore"):
                found = law(self.read(params, np.where(tokens > 0, tokens, np.nan)), draws)
            return np.where(np.isfinite(found) & (tokens > 0), found, np.inf)

        if given.params is not None:
            params = np.full(shape, given.params)
        elif given.tokens is not None:
            params = np.full(shape, (flops / (cost.k * (given.tokens + served))) ** (1 / cost.g))
        else:
            most = (flops / (cost.k * (1 + served))) ** (1 / cost.g)  # which leaves one token to train on
            params = lowest(loss, 1.0, max(min(most, given.most_params), 1.0), shape)
        tokens = given.tokens_for(cost, flops, params)
        if np.any(tokens <= 0):
            raise ValueError(f"{flops:.3g} FLOPs do not pay for this: {' '.join(given.describe(law))}")
        if np.any(params > given.most_params * (1 + 1e-9)):
            raise ValueError(f"{count(float(np.max(params)))} parameters do not fit {given.memory:.3g} bytes")
        return params, tokens, loss(params)

    def tokens_needed(
        self, parameters: Parameters, loss: Float[np.ndarray, "*points"], params: Float[np.ndarray, "*points"]
    ) -> Float[np.ndarray, "*points"]:
        """Tokens with which sizes reach a loss, a curve of equal loss; infinite where they cannot.

        Args:
            parameters: values, or a draw a point.
            loss: nats per token.
            params: the sizes.
        """

        def above(log: np.ndarray) -> np.ndarray:
            return self.law(self.read(params, np.exp(log)), parameters) > loss

        low, high = np.zeros(np.shape(params)), np.full(np.shape(params), np.log(np.max(params) * _UNREACHABLE))
        never = above(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            more = above(middle)
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.where(never, np.inf, np.exp(high))


def lowest(
    loss: Callable[[Float[np.ndarray, "*draws"]], Float[np.ndarray, "*draws"]],
    low: float,
    high: float,
    shape: tuple[int, ...],
) -> Float[np.ndarray, "*draws"]:
    """The positive argument at which a function with one minimum is lowest between two ends, for every draw at once."""
    low, high = np.full(shape, np.log(low)), np.full(shape, np.log(high))
    steps = np.linspace(0, 1, _GRID)
    for _ in range(_ROUNDS):
        x = low + (high - low) * steps.reshape(-1, *(1,) * len(shape))
        best = np.argmin(np.stack([loss(np.exp(each)) for each in x]), axis=0)
        low, high = (np.take_along_axis(x, np.clip(best + side, 0, _GRID - 1)[None], axis=0)[0] for side in (-1, 1))
    return np.exp((low + high) / 2)


def _reads_unique(law: Law) -> bool:
    return "unique_tokens" in law.columns
