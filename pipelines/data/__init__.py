"""The data path: a source becomes shards and a manifest, a plan becomes work items, tasks make uint8 blocks of it."""
