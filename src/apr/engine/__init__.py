"""The inference engine: token ids in, token ids out. Text stays outside."""
