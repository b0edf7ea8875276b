"""The detection half: recipes (the YAML files right here), data, engines, runs, comparison."""

import runtime  # noqa: F401  first: it sets how torch's threads wait
