"""Compress vision models, with data augmentation as part of compression: recipes, stages, and the verbs behind them."""

import importlib
from typing import TYPE_CHECKING, Any

# name -> the module that holds it. Loaded when first asked for, so that `import compress_aug` costs no torch.
_PUBLIC = {
    "Attach": "compress_aug.stages",
    "AttentionHeads": "compress_aug.distill",
    "Augment": "compress_aug.stages",
    "AugmentTransform": "compress_aug.augment",
    "AutoMagnitude": "compress_aug.augment",
    "Batch": "compress_aug.batch",
    "BudgetMissed": "compress_aug.errors",
    "CompressAugError": "compress_aug.errors",
    "CrossEntropy": "compress_aug.training",
    "Data": "compress_aug.data",
    "Distill": "compress_aug.stages",
    "Distillation": "compress_aug.distill",
    "Drop": "compress_aug.stages",
    "Export": "compress_aug.stages",
    "Filter": "compress_aug.stages",
    "Gradual": "compress_aug.stages",
    "Keep": "compress_aug.stages",
    "LearnedAugment": "compress_aug.augment",
    "Model": "compress_aug.stages",
    "OnlineMutualLearning": "compress_aug.distill",
    "Points": "compress_aug.schedule",
    "Policy": "compress_aug.policies",
    "PolicySchedule": "compress_aug.policies",
    "PolicySlot": "compress_aug.search",
    "Prune": "compress_aug.stages",
    "PruneChannels": "compress_aug.stages",
    "Quantize": "compress_aug.stages",
    "Ramp": "compress_aug.schedule",
    "RandAugment": "compress_aug.augment",
    "Recipe": "compress_aug.recipe",
    "Redraw": "compress_aug.stages",
    "Result": "compress_aug.running",
    "Search": "compress_aug.stages",
    "Settings": "compress_aug.training",
    "Setup": "compress_aug.stages",
    "SoftLabels": "compress_aug.distill",
    "Stage": "compress_aug.stages",
    "State": "compress_aug.stages",
    "Taps": "compress_aug.distill",
    "TeacherFilter": "compress_aug.augment",
    "Train": "compress_aug.stages",
    "Training": "compress_aug.training",
    "UserError": "compress_aug.errors",
    "WorkError": "compress_aug.errors",
    "aligned_vectors": "compress_aug.distill",
    "attach_layers": "compress_aug.inheritance",
    "augment_images": "compress_aug.augment",
    "check": "compress_aug.running",
    "check_parity": "compress_aug.deploy",
    "copy_model": "compress_aug.surgery",
    "cut_channels": "compress_aug.channels",
    "data_from": "compress_aug.data",
    "drop_layers": "compress_aug.inheritance",
    "exploit": "compress_aug.search",
    "explore": "compress_aug.search",
    "export_again": "compress_aug.running",
    "finalize": "compress_aug.quantization",
    "fit": "compress_aug.training",
    "gradual": "compress_aug.pruning",
    "kd_svd_loss": "compress_aug.distill",
    "latency": "compress_aug.deploy",
    "load": "compress_aug.running",
    "load_data": "compress_aug.data",
    "load_model": "compress_aug.models",
    "load_recipe": "compress_aug.recipe",
    "make_permanent": "compress_aug.surgery",
    "mask_like": "compress_aug.pruning",
    "mask_pattern": "compress_aug.pruning",
    "mask_random": "compress_aug.pruning",
    "mask_smallest": "compress_aug.pruning",
    "measure": "compress_aug.measure",
    "mhgd_loss": "compress_aug.distill",
    "mutual_loss": "compress_aug.distill",
    "quantize": "compress_aug.quantization",
    "read_pba_log": "compress_aug.policies",
    "read_schedule": "compress_aug.policies",
    "redraw": "compress_aug.pruning",
    "reestimate_batch_norms": "compress_aug.quantization",
    "rkd_loss": "compress_aug.distill",
    "run": "compress_aug.running",
    "search_population": "compress_aug.search",
    "singular_vectors": "compress_aug.distill",
    "soft_label_loss": "compress_aug.distill",
    "surgery_log": "compress_aug.surgery",
    "sweep": "compress_aug.search",
    "write": "compress_aug.deploy",
    "write_pba_log": "compress_aug.policies",
    "write_schedule": "compress_aug.policies",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from compress_aug import measure as measure


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'compress_aug' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"compress_aug.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
