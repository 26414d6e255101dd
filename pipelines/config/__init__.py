"""Recipes: what a run trains, on which data, and how. Each section is a frozen dataclass that validates itself."""

DEMO = "mnist5k"
"""Recipe that runs if the user names none."""
