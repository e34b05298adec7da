"""Text to fixed-length rows on disk to batches by step."""
