"""One fine-tuning run: recipe, conventions, weights, training, evaluation, ``results.json``."""
