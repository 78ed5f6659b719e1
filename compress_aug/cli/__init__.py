"""The command line: run, check, plan, list, copy, schema, bench, export, report, sensitivity, pictures."""

from compress_aug.cli.commands import app, main

__all__ = ["app", "main"]
