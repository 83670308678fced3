"""Writing a checkpoint folder that is complete or absent. Only this room writes weight files."""
