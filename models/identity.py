"""What the identity of a run leaves out of an architecture."""

from types import MappingProxyType

ADDED = MappingProxyType({"added": True})
"""Metadata of a field that came later than runs whose identity must stay: at its default it is no part of that."""
