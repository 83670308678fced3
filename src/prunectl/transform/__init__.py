"""What happens to one tensor: edits, blocks of rows, and the pass that writes it."""
