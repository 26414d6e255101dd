"""Benchmarks that a user can run; each prints a table, and most can write JSON."""
