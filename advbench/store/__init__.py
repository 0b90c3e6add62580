"""Results and where they are kept: records and artifacts at any URL, leases, heartbeats, archives, upkeep."""
