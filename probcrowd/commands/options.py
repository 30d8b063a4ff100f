"""Parts shared by commands: options for tables of annotations, one-line errors, lists of written files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click

Command = Callable[..., None]

FILE = click.Path(path_type=Path)
LABELS = click.argument("labels", type=FILE)
OUT = click.option("--out", required=True, type=FILE, help="Folder for the results.")
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, e.g. training.steps=500. Repeatable.",
)


class Name(click.Choice):
    """One of several names; case, hyphens and underscores do not matter."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = {_plain(str(choice)): str(choice) for choice in self.choices}
        return super().convert(known.get(_plain(str(value)), value), param, ctx)


def split_names(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    """Split the value of an option at commas or semicolons."""
    return re.split(r"\s*[,;]\s*", text.strip()) if text else None


def annotation_options(command: Command) -> Command:
    """Add the options on how to read annotations, passed on as `reading` for `read_annotations`."""

    @wraps(command)
    def run(*arguments: Any, columns: str | None, duplicates: str, missing: str, **options: Any) -> None:
        from probcrowd.data.files import named_columns

        reading = {"duplicates": duplicates, "missing": missing, **named_columns(columns)}
        command(*arguments, reading=reading, **options)

    for option in (
        click.option(
            "--missing",
            default="error",
            show_default=True,
            type=Name(["error", "skip"]),
            help="What to do with rows without a label.",
        ),
        click.option(
            "--duplicates",
            default="error",
            show_default=True,
            type=Name(["error", "first", "last", "count", "share"]),
            help="What to do with repeated pairs of item and annotator.",
        ),
        click.option(
            "--columns",
            metavar="item=NAME,annotator=NAME,label=NAME,weight=NAME",
            help="Names of columns, if they differ from these, and the column of weights, if any.",
        ),
    ):
        run = option(run)
    return run


def report_errors(command: Command) -> Command:
    """Print user errors in one line instead of a traceback."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error
        except (EOFError, BadZipFile) as error:
            raise click.ClickException(f"a file is empty or damaged: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from error
        except KeyboardInterrupt as error:
            raise click.ClickException("interrupted; saved files are complete") from error

    return run


def missing_packages(purpose: str, error: ImportError, extra: str) -> click.ClickException:
    """The error for packages that are not installed, with the command that installs them."""
    return click.ClickException(
        f'{purpose} needs more packages ({error}): install the extra "{extra}": '
        f'pip install ".[{extra}]" in a clone of the repository'
    )


def print_files(folder: Path, names: Iterable[str]) -> None:
    """Print the paths of those files that exist."""
    for path in filter(Path.exists, (folder / name for name in names)):
        click.echo(str(path))


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()
