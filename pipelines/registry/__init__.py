"""Registered models: registration, the gate, the champion, and the contents of a version."""
