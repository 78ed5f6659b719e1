"""Learned augmentation policies as data: a policy, a schedule of them over epochs, their files. No torch."""

from compress_aug.policies.curves import Curves, curves
from compress_aug.policies.pba_log import lived_schedule, log_line, read_pba_log, write_pba_log
from compress_aug.policies.policy import Policy
from compress_aug.policies.schedule import PolicySchedule, Replay, Segment
from compress_aug.policies.schedule_file import read_schedule, write_schedule
from compress_aug.policies.space import COPIES, ENTRIES, MAX_MAGNITUDE, MAX_PROBABILITY, OPERATIONS, SPACE

__all__ = [
    "COPIES",
    "ENTRIES",
    "MAX_MAGNITUDE",
    "MAX_PROBABILITY",
    "OPERATIONS",
    "SPACE",
    "Curves",
    "Policy",
    "PolicySchedule",
    "Replay",
    "Segment",
    "curves",
    "lived_schedule",
    "log_line",
    "read_pba_log",
    "read_schedule",
    "write_pba_log",
    "write_schedule",
]
