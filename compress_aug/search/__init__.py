"""Searches: how strong augmentation should be at each sparsity, and which learned policy when."""

from compress_aug.search.evolution import exploit, explore
from compress_aug.search.judging import judged
from compress_aug.search.magnitude import (
    GRIDS,
    Outcome,
    Summary,
    is_unimodal,
    kept_schedule,
    maximal_magnitude,
    optimal_magnitude,
    sweep,
    table_rows,
)
from compress_aug.search.population import (
    Change,
    FoundPolicies,
    PolicySlot,
    Progress,
    search_population,
    spread,
)
from compress_aug.search.reduced import reduced

__all__ = [
    "GRIDS",
    "Change",
    "FoundPolicies",
    "Outcome",
    "PolicySlot",
    "Progress",
    "Summary",
    "exploit",
    "explore",
    "is_unimodal",
    "judged",
    "kept_schedule",
    "maximal_magnitude",
    "optimal_magnitude",
    "reduced",
    "search_population",
    "spread",
    "sweep",
    "table_rows",
]
