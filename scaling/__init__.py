"""Laws of how a model scales: forms, fits, uncertainty, plans, figures and reports, for any table of runs."""
