"""What models read: text, tables, images and tokens, named by a source and opened with care."""
