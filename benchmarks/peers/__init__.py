"""Loaders that ours is compared with, one small file each; each runs in a separate environment.

`python -m benchmarks.peers install FOLDER` makes the environments; `benchmarks/ingest.py` runs the files. Each loader
reads the photographs of one folder. A loader with its own format first converts them, which is not timed. Each takes
RandomResizedCrop 224 with a scale from 0.08 to 1 and a random flip, and yields batches; `measure.py` counts them.
"""
