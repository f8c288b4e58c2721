"""Pruning: weights, heads, channels and layers taken out of a model, calibrated block by block."""
