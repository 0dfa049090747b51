"""A little training behind pruning, with the zeros held."""
