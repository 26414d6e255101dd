"""Answer requests with a registered model: the form of requests, and a Ray Serve application."""
