"""The store of results: records and artifacts at any URL, leases, heartbeats, archives, maintenance."""
