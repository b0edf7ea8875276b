"""From finished fine-tuning runs to a table and a report that a reviewer would trust."""

from transfer.compare.summary import summarise

__all__ = ["summarise"]
