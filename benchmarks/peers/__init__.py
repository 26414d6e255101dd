"""The loaders that ours is compared with, one small file each, run by an environment of its own.

`python -m benchmarks.peers install FOLDER` makes the environments; `benchmarks/ingest.py` runs the files. Each reads
the photographs of one folder (written anew in its own format first, untimed, where it has one), takes
RandomResizedCrop 224 with a scale from 0.08 to 1 and a flip of each, and hands batches over; `measure.py` counts them.
"""
