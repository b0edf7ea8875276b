"""Two engines behind one contract: Detectron2 itself, and a model of ours that equals it."""
