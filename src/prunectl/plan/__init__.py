"""What is asked for, and what follows from names and shapes: settings, recipes, the plan."""
