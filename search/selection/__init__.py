"""How the winner is picked once candidates can be scored."""
