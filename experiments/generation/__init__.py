"""Texts from trained models: sampling one token at a time, and searching for the likeliest."""

from experiments.generation.beams import Beams, BeamSearch, LengthPenalty, search
from experiments.generation.prompts import Prompts
from experiments.generation.sampling import GREEDY, Sampling
from experiments.generation.writing import Written, write

__all__ = [
    "GREEDY",
    "BeamSearch",
    "Beams",
    "LengthPenalty",
    "Prompts",
    "Sampling",
    "Written",
    "search",
    "write",
]
