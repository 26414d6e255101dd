"""Reproduction of published results: suites of recipes and seeds, their measurements and tables."""
