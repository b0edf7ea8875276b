"""Where images come from: a folder, a list or tar shards; their bytes, and their pixels."""
