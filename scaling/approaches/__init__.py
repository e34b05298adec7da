"""Hoffmann's three approaches to the compute-optimal size, side by side."""
