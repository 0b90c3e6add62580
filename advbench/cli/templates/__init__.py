"""What `advbench new` writes, as files that run; their names are replaced."""
