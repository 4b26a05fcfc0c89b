"""What methods share: the trainer, its data and its reference."""

DEFAULT_STEPS = 48
"""Optimizer steps where neither steps nor epochs are asked for (docs/defaults.md)."""
