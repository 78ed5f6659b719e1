"""The space of learned policies, `pba15x2`: fifteen operations, two copies of each, a probability and a magnitude.

A policy is stored as 60 whole numbers without names: v[0..29] are the first copies, v[30..59] the second ones;
within a copy, operation i has its probability in tenths at v[2i] and its magnitude at v[2i+1].

So the order of the operations is part of the format: the numbers alone do not tell a probability of Rotate
from one of Invert, and no check can. OPERATIONS is the order in which Population Based Augmentation
(arXiv 1905.05393) writes them. The code of arXiv 2004.08861 lists the operations in another order, but goes
through a Python 2.7 dict, which brings them back into this one: a reader that takes its list literally reads
its schedules wrongly, without any error.
"""

from typing import Final

SPACE: Final = "pba15x2"

OPERATIONS: Final = (
    "Rotate",
    "TranslateX",
    "TranslateY",
    "Brightness",
    "Color",
    "Invert",
    "Sharpness",
    "Posterize",
    "ShearX",
    "Solarize",
    "ShearY",
    "Equalize",
    "AutoContrast",
    "Cutout",
    "Contrast",
)
"""The fifteen operations, in the order in which their numbers are stored."""

COPIES: Final = 2

ENTRIES: Final = OPERATIONS * COPIES
"""The operation of each of the 30 entries, in the vector's order."""

MAX_PROBABILITY: Final = 10
"""Probabilities are whole tenths, 0..10."""

MAX_MAGNITUDE: Final = 9
"""Magnitudes are 0..9. What one means depends on the operation; it is no magnitude 0..30 of RandAugment."""
