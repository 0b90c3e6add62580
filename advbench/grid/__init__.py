"""The grid: from a spec to tasks with keys and their results, on one machine or several."""
