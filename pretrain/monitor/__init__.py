"""Signals while training: is the encoder learning, and what? Measured, never part of the recipe."""

from pretrain.monitor.monitor import Monitor

__all__ = ["Monitor"]
