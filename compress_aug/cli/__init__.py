"""The command line: run, check, plan, list, copy, schema, bench, export, report, sensitivity, and pictures of augmentation."""

from compress_aug.cli.commands import app, main

__all__ = ["app", "main"]
