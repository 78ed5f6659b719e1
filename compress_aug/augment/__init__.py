"""Image augmentation at a magnitude 0..30: batched, and the same for an image wherever it is drawn."""

from compress_aug.augment.auto import (
    AutoMagnitude,
    Difficulty,
    difficulty,
    knowledge_sums,
    next_magnitude,
    probe_interval,
)
from compress_aug.augment.crop_flip import draw_crop_flip
from compress_aug.augment.cutout import draw_cutout
from compress_aug.augment.draws import Stream, draw_words
from compress_aug.augment.executor import Executor, apply_plan
from compress_aug.augment.filter import TeacherFilter, filter_scores
from compress_aug.augment.learned import LearnedAugment, draw_policy, policy_arguments
from compress_aug.augment.operations import Operation, check_magnitude, magnitude_arguments
from compress_aug.augment.pipeline import Augmentation
from compress_aug.augment.plan import Plan, draw_magnitudes, draw_plan
from compress_aug.augment.randaugment import RandAugment, augment_images, crop_and_flip
from compress_aug.augment.transform import AugmentTransform

__all__ = [
    "AugmentTransform",
    "Augmentation",
    "AutoMagnitude",
    "Difficulty",
    "Executor",
    "LearnedAugment",
    "Operation",
    "Plan",
    "RandAugment",
    "Stream",
    "TeacherFilter",
    "apply_plan",
    "augment_images",
    "check_magnitude",
    "crop_and_flip",
    "difficulty",
    "draw_crop_flip",
    "draw_cutout",
    "draw_magnitudes",
    "draw_plan",
    "draw_policy",
    "draw_words",
    "filter_scores",
    "knowledge_sums",
    "magnitude_arguments",
    "next_magnitude",
    "policy_arguments",
    "probe_interval",
]
