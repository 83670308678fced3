"""Write a checkpoint folder that is complete or absent. Only this package writes weight files."""
