"""Faults of the user's input, told in one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from zipfile import BadZipFile

import click


def told(command: Callable[..., None]) -> Callable[..., None]:
    """The command with faults of the user's input told in one line."""

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
            raise click.ClickException("interrupted; what has been saved is whole") from error

    return run
