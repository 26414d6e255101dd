"""What the device does to a batch of images before the network sees it; every draw comes from one generator a step.

batch.py          the order of things: flip, colours, lighting, normalization, erasing
photometric.py    colour jitter and PCA lighting
erasing.py        random erasing
mixing.py         mixup and cutmix, with the targets that they make
"""

from resnet_core.augment.batch import at_size, augment, center_of, normalize, random_flip, step_generator

__all__ = ["at_size", "augment", "center_of", "normalize", "random_flip", "step_generator"]
