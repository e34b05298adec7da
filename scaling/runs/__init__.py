"""The table of runs: one row a training run, its columns, its units, and what is refused.

A table comes from anywhere: CSV, JSONL or Parquet, with columns of any name (`read` renames), and needs `params`,
`loss` and one of `tokens` / `flops`. Columns that are not in the schema are carried along untouched.
"""

from scaling.runs.checking import check
from scaling.runs.reading import Source, load, read, split, view, write
from scaling.runs.schema import HELD_OUT, SCHEMA, Convention, Table, nearest

__all__ = [
    "HELD_OUT", "SCHEMA", "Convention", "Source", "Table", "check", "load", "nearest", "read", "split", "view", "write",
]  # fmt: skip
