"""Studies that reproduce the paper and go past it."""
