"""`python -m advbench`."""

from advbench.cli.app import script

if __name__ == "__main__":
    script()
