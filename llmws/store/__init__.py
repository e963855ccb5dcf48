"""Sessions at rest: sealed records, session folders, the writer thread, keys and tokens. Knows nothing of the hub."""
