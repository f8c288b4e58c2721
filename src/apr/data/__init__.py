"""Training data: made from sources, checked against benchmarks, scored, split."""
