"""Losses between teacher and student, one file a family."""

from compress_aug.distill.attention import Attention
from compress_aug.distill.clipping import backward_clipped, clip_to_task
from compress_aug.distill.distillation import Distillation, ii_kd_terms
from compress_aug.distill.dml import mutual_loss
from compress_aug.distill.features import TapNames
from compress_aug.distill.kd_svd import kd_svd_loss
from compress_aug.distill.mhgd import AttentionHeads, mhgd_loss
from compress_aug.distill.online import OnlineMutualLearning
from compress_aug.distill.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from compress_aug.distill.singular_vectors import aligned_vectors, singular_vectors
from compress_aug.distill.soft_labels import SoftLabels, soft_label_loss
from compress_aug.distill.taps import Taps, positions
from compress_aug.distill.terms import Directions, Mutual, Relations, Term

__all__ = [
    "Attention",
    "AttentionHeads",
    "Directions",
    "Distillation",
    "Mutual",
    "OnlineMutualLearning",
    "Relations",
    "SoftLabels",
    "TapNames",
    "Taps",
    "Term",
    "aligned_vectors",
    "backward_clipped",
    "clip_to_task",
    "ii_kd_terms",
    "kd_svd_loss",
    "mhgd_loss",
    "mutual_loss",
    "positions",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "singular_vectors",
    "soft_label_loss",
]
