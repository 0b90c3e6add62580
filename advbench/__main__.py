"""`python -m advbench`."""

from advbench.cli import script

if __name__ == "__main__":
    script()
