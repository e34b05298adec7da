"""The published atlas: laws with the constants of their papers, compute-optimal exponents, and public tables of runs.

published.law("Hoffmann")(params=70e9, tokens=1.4e12)     # a loss, to draw beside one's own
published.table("chinchilla")                              # a frame in our columns, from a folder or fetched
"""

from scaling.fitting.powerlaw import Compute
from scaling.published.allocations import ALLOCATIONS, PublishedAllocation
from scaling.published.constants import LAWS, PETAFLOP_DAY, PublishedLaw, law
from scaling.published.tables import TABLES, Original, PublishedTable, Rows, table

SIX_ND = Compute(6.0, 1.0, 0.0)
"""The compute of large models, as published laws count it."""

__all__ = [
    "ALLOCATIONS", "LAWS", "PETAFLOP_DAY", "SIX_ND", "TABLES", "Original", "PublishedAllocation", "PublishedLaw",
    "PublishedTable", "Rows", "law", "table",
]  # fmt: skip
