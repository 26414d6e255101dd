"""Augmentation of a batch on its device; each rank draws all random numbers of a step from one generator.

batch.py          the transforms in order: flip, colours, lighting, normalization, erasing
photometric.py    colour jitter and PCA lighting
erasing.py        random erasing
mixing.py         mixup and CutMix, with their targets
"""

from resnet_core.augment.batch import at_size, augment, center_of, normalize, random_flip, step_generator

__all__ = ["at_size", "augment", "center_of", "normalize", "random_flip", "step_generator"]
