"""The command line: each command is parsing, one call of the library, and a screen.

Nothing heavy is imported before a command runs: ``--help`` loads typer and no rich, no torch.
"""
