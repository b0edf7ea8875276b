"""Batches of views: in which order, by which processes, and through which memory."""
