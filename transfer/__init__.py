"""The detection half: recipes (the YAML files right here), data, engines, runs, comparison."""
