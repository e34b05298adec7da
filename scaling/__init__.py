"""Laws of how a model scales: forms, fits, uncertainty, plans, figures and reports, for any table of runs."""

import importlib

_ROOMS = {"fit": "fitting.fit", "audit": "decisions.audit", "plan": "decisions.plan", "compare": "decisions.compare"}


def __getattr__(name: str):
    """The functions people call, imported when asked for: a notebook that only reads laws pays for nothing else."""
    if name in _ROOMS:
        return getattr(importlib.import_module(f"scaling.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'scaling' has no attribute {name!r}")
