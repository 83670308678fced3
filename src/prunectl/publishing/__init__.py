"""``push``: an output of prunectl becomes a repository on the Hub."""
