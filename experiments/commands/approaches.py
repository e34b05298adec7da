"""`scaling approaches`: Hoffmann's three approaches side by side."""

from dataclasses import dataclass

from experiments.commands.fit import TableOptions, print_result


@dataclass(frozen=True)
class Command(TableOptions):
    """Fit Hoffmann's approaches 1, 2 and 3 side by side, and say why they differ.

    1 is the envelope of all runs (of training curves, where a curves.csv lies beside the table), 2 the minima of
    IsoFLOP budgets by parabolas and by splines, 3 one law for all runs. Repeated under every convention of N and C
    that the table has: all parameters or those without embeddings, exact FLOPs or 6ND.
    """

    json: bool = False
    """Print one JSON object."""
    beyond: float = 10.0
    """Show optima at this many times the largest compute fitted."""

    def __call__(self) -> int:
        """Fit and print."""
        from scaling.approaches.conventions import approaches

        draws = {"resamples": self.resamples, "seed": self.seed}
        print_result(approaches(self.read(), self.curves(), share=self.beyond, **draws), as_json=self.json)
        return 0
