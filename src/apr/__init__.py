"""apr: make code language models better, smaller and faster, and prove it with honest scores."""

__version__ = "0.1.0"
