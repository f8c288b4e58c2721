"""Ways of putting a task to a model: templates and, where an answer takes several turns, loops."""
