"""The data path: sources become shards and a manifest, a plan becomes work items, and tasks turn these into blocks."""
