"""Losses between teacher and student, one file a family."""

from compress_aug.distill.soft_labels import SoftLabels, soft_label_loss

__all__ = ["SoftLabels", "soft_label_loss"]
