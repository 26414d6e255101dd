"""Pretrained weights by name: addresses of hubs, verified downloads, a cache, and what the weights expect of images."""
