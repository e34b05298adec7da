"""How sure a fit is: resampling, curvature, profiles, and verdicts in words."""
