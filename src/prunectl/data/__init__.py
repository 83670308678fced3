"""Data that models read: text, tables, datasets, images and tokens, by the names users give."""
