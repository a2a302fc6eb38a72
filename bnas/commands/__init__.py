"""One small file per command: a `do_…` function that returns the result as a dictionary, and its Typer front."""
