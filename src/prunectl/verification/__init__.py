"""``verify``: an output against its manifest, its source, and what transformers expects."""
