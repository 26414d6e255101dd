"""Answering requests with a registered model: what they may hold, and a Ray Serve application."""
