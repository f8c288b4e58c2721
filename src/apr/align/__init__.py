"""Alignment: training on preferences (`apr align`)."""
