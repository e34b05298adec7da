"""One file per experiment that a person runs by name."""
