"""How one layer is solved: SNOWS, and what it needs to decide."""
