"""Training: adapters, losses, packed data and one loop for every method."""
