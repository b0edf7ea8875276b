"""Turning images into WebDataset shards."""
