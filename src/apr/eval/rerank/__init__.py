"""Choosing one of several samples without looking at the tests that score it."""
