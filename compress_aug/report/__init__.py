"""report.json -> table, plots, one HTML page."""

from compress_aug.report.contract import Report, read_report
from compress_aug.report.page import write_page
from compress_aug.report.table import report_table

__all__ = ["Report", "read_report", "report_table", "write_page"]
