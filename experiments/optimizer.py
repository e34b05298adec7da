"""AdamW and learning-rate schedules.

The learning rate is data: the schedule is evaluated on the host for each step and passed to the compiled step, so runs
that differ only in rate or length share one program.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float32

from models.layers import Role
from parallel.sharding import is_variable


class Shape(Enum):
    """What follows the warmup, down to `Schedule.final` times the peak.

    `wsd` is warmup, stable, decay: constant, then linear over the last share `Schedule.decay` of the steps (Hu et al.
    2024); `inverse-sqrt` falls with the square root of the step (Vaswani et al. 2017) and has no end.
    """

    COSINE = "cosine"
    LINEAR = "linear"
    INVERSE_SQRT = "inverse-sqrt"
    WSD = "wsd"
    CONSTANT = "constant"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a run.

    Attributes:
        peak: highest rate.
        shape: what follows the warmup.
        warmup: share of all steps with a linear rise from zero.
        decay: share of all steps in which `wsd` falls.
        final: rate at the end, as a share of the peak.
    """

    peak: float = 1e-3
    shape: Shape = Shape.COSINE
    warmup: float = 0.05
    decay: float = 0.2
    final: float = 0.1

    def __post_init__(self):
        if not self.peak > 0:
            raise ValueError(f"schedule: peak is {self.peak} and must be positive")
        for name in ("warmup", "decay", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule: {name} is {getattr(self, name)}; it is a share between 0 and 1")

    def rates(self, first: int, count: int, *, steps: int) -> Float32[np.ndarray, " count"]:
        """Rates of steps `first` to `first + count - 1` of a run of `steps` steps; the first of all is above zero."""
        step = np.arange(first, first + count, dtype=np.float64)
        warmup = max(1.0, self.warmup * steps)
        done = np.clip((step - warmup) / max(1.0, steps - warmup), 0.0, 1.0)
        match self.shape:
            case Shape.COSINE:
                level = self.final + (1 - self.final) * 0.5 * (1 + np.cos(np.pi * done))
            case Shape.LINEAR:
                level = 1 - (1 - self.final) * done
            case Shape.INVERSE_SQRT:
                level = np.sqrt(warmup / np.maximum(step + 1, warmup))
            case Shape.WSD:
                falling = max(1.0, self.decay * steps)
                level = 1 - (1 - self.final) * np.clip((step + 1 - (steps - falling)) / falling, 0.0, 1.0)
            case Shape.CONSTANT:
                level = np.ones_like(step)
        return (self.peak * np.minimum(1.0, (step + 1) / warmup) * level).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), on kernels and embeddings only.

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        weight_decay: each step takes this share of the learning rate off a parameter.
        clip: largest global norm of the gradient; None for no limit.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def transform(self) -> optax.GradientTransformation:
        """Gradients to updates, before the learning rate."""
        return optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decayed),
        )


def decayed(model: Any) -> Any:
    """For every parameter of a model, whether weight decay applies."""

    def one(param):
        return param.replace(param.get_metadata("role") not in (Role.BIAS, Role.SCALE))

    return jax.tree.map(one, model, is_leaf=is_variable)
