"""Options that several commands have, as decorators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path)
COLUMNS = click.option(
    "--columns",
    metavar="item=NAME,annotator=NAME,label=NAME,weight=NAME",
    help="Columns that have other names.",
)
MISSING = click.option(
    "--missing", default="error", type=click.Choice(["error", "skip"]), help="Rows without a label."
)


def duplicates_option(words: str) -> Decorator:
    """What to do with repeated (item, annotator) pairs. words: the help."""
    kinds = click.Choice(["error", "first", "last", "count", "share"])
    return click.option("--duplicates", default="error", type=kinds, help=words)
