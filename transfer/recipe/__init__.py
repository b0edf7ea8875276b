"""Reading recipes: a table of defaults, overrides, refusal of what is unknown."""
