"""How good are the features? Linear classifier, kNN, fine-tuning (MoCo, sections 4.1, A.6)."""
