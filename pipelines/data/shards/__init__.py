"""Shards: the manifest, the reader that verifies byte ranges, the disk cache, and bad records."""
