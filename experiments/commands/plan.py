"""`scaling plan`: how to spend a budget, and which runs to buy before."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.commands.fit import TableOptions, print_result, table_at


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Compute-optimal parameters and tokens of a budget, with intervals, and the runs that would make them surer.

    Shows what other sizes would lose, and how far the budget lies beyond the table. With --next 5 --budget 1e21 it
    chooses the five runs, for 1e21 FLOPs together, that narrow the interval of --target most.
    """

    flops: Annotated[str, tyro.conf.arg(name="flops-column")] = "flops"
    """Column with the training FLOPs."""
    budgets: Annotated[tuple[float, ...], tyro.conf.arg(name="flops")] = ()
    """The training FLOPs to plan for, one budget or several, such as: --flops 1e22 1e24."""
    law: str = "chinchilla"
    """Name of a law that reads params and tokens."""
    at: tuple[str, ...] = ()
    """Values of what else the law reads, such as: --at width=1024 layers=12."""
    unique_tokens: float | None = None
    """There are no more different tokens than this; more repeat them."""
    served_tokens: float | None = None
    """Tokens of inference over the model's lifetime; the budget then pays for training and inference."""
    memory: float | None = None
    """Bytes that the parameters must fit in."""
    bytes_per_param: float = 2.0
    """Bytes of a parameter in that memory."""
    fixed_params: float | None = None
    """The number of parameters is this."""
    fixed_tokens: float | None = None
    """The number of training tokens is this."""
    next: int = 0
    """Choose so many runs to buy next."""
    budget: float | None = None
    """FLOPs that the next runs may cost together."""
    target: str = "params"
    """What they should make surer: params, tokens, ratio, loss (at the largest --flops), a, b, a parameter, or all."""
    candidates: str = ""
    """Table of runs to choose from, with params and tokens; a grid around the table unless given."""
    json: bool = False
    """Print one JSON object."""

    def __call__(self) -> int:
        """Plan and print."""
        from scaling.decisions.constraints import Constraints
        from scaling.decisions.plan import plan

        if not self.budgets:
            raise ValueError("say at which budget to plan, such as --flops 1e24")
        constraints = Constraints(
            unique_tokens=self.unique_tokens,
            served_tokens=self.served_tokens,
            memory=self.memory,
            bytes_per_param=self.bytes_per_param,
            params=self.fixed_params,
            tokens=self.fixed_tokens,
        )
        place, name = table_at(self.candidates) if self.candidates else (None, "")
        found = plan(
            self.read(),
            flops=self.budgets,
            law=self.law,
            constraints=constraints,
            at=values(self.at),
            next_runs=self.next,
            budget=self.budget,
            target=self.target,
            candidates=place and place.folder / name,
            resamples=self.resamples,
            seed=self.seed,
        )
        print_result(found, as_json=self.json)
        return 0


def values(given: tuple[str, ...]) -> dict[str, float]:
    """NAME=NUMBER, several of them, as a mapping.

    Raises:
        ValueError: one is not of that form.
    """
    found = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--at takes NAME=NUMBER, not {each!r}") from None
    return found
