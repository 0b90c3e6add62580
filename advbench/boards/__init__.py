"""Boards: published folders of results that anyone can check, recompute and extend."""
