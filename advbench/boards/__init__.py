"""Boards: published folders of results, whose records anybody can check, compute anew and extend."""
