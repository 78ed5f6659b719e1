"""run(): walk the list; save, resume; report.json."""

from compress_aug.running.again import export_again
from compress_aug.running.rehearse import check
from compress_aug.running.run import Result, load, run

__all__ = ["Result", "check", "export_again", "load", "run"]
