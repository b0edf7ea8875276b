"""Adapter to Detectron2, for installations that have it."""
