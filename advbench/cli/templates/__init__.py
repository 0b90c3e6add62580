"""Templates of `advbench new`, as working files; their names are replaced."""
