"""The `probcrowd` command: a thin layer over functions that Python code can call."""

from __future__ import annotations

import click

import probcrowd
from probcrowd.commands.aggregate import aggregate, compare
from probcrowd.commands.check import check
from probcrowd.commands.meta import adapt, demo, evaluate, meta_train_command
from probcrowd.commands.reproduce import reproduce


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(probcrowd.__version__)
def main() -> None:
    """Learn from several imperfect annotators."""


for command in (meta_train_command, evaluate, adapt, check, aggregate, compare, reproduce, demo):
    main.add_command(command)
