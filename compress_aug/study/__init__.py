"""Variants x seeds of recipes: on this machine or on Ray, resumed, shared, judged, tabled and drawn."""

from compress_aug.study.conduct import conduct
from compress_aug.study.file import Study, find_study, load_study, study_names
from compress_aug.study.launch import in_processes
from compress_aug.study.planned import PlannedRun
from compress_aug.study.results import ResultsFile, read_results
from compress_aug.study.words import RunResult, StudyResults

__all__ = [
    "PlannedRun",
    "ResultsFile",
    "RunResult",
    "Study",
    "StudyResults",
    "conduct",
    "find_study",
    "in_processes",
    "load_study",
    "read_results",
    "study_names",
]
