"""Settings, recipes, and the plan that follows from them, names and shapes."""
