"""The grid: from a spec to tasks with keys, and to their results, on this machine or many."""
