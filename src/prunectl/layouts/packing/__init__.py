"""Parts of the packed layout: alphabets of symbols, planes of bytes, chunks of planes."""
