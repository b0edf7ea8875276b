"""Reading recipes: safe YAML, a table of defaults, overrides, refusal of unknown keys."""
