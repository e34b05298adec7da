"""Architectures as data, the modules they become, and what they cost."""
