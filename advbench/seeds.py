"""Seeds derived from labels: every random choice has an address, so none depends on what ran before it."""

import hashlib


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for the choice addressed by `labels` under `seed`.

    SHA-256 of the labels: streams with different labels are independent for every practical purpose, the
    same on every platform, and need no state to be saved when a run is interrupted.
    """
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
