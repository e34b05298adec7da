"""`scaling audit`: which law predicts runs it has not seen."""

from dataclasses import dataclass

from experiments.commands.fit import TableOptions, print_result


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Rank laws by how well they predict runs they were not fitted on.

    Fits every law whose columns the table has below compute cut-offs and tries it on the runs above, and without each
    size; shows how far intervals can be trusted beyond the runs fitted, and whether exponents drift as the table grows.
    A table that cannot tell laws apart, such as one whose runs all have the same tokens per parameter, is told why.
    """

    laws: tuple[str, ...] = ()
    """Only these laws, such as: --laws chinchilla kaplan-nd floor-flops."""
    cutoffs: tuple[float, ...] = ()
    """Fit below these FLOPs, such as: --cutoffs 1e20 1e21. Chosen from the table unless given."""
    resamples: int = 200
    """Bootstrap resamples behind the intervals."""
    json: bool = False
    """Print one JSON object."""

    def __call__(self) -> int:
        """Audit and print."""
        from scaling.decisions.audit import audit

        draws = {"resamples": self.resamples, "seed": self.seed}
        print_result(audit(self.read(), self.laws or None, cutoffs=self.cutoffs or None, **draws), as_json=self.json)
        return 0
