"""Models as files: taking them in, describing them, checking them."""
