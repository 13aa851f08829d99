"""Keeps the engine from logging a user's error before it is shown."""

from __future__ import annotations

import logging
import sys

from ignite.engine import Engine

from scripts.runtime.error_report import find_user_error

__all__ = ["UserErrorsOnce"]


class UserErrorsOnce:
    """Drops the engine's log lines about an error that the final message explains.

    Ignite logs every exception that passes through an engine, twice. Exceptions that are neither a
    `TractAtlasError` nor an interruption by the user are still logged.
    """

    def attach(self, engine: Engine) -> None:
        """Filter the log of the engine."""
        engine.logger.addFilter(_not_of_a_user_error)


def _not_of_a_user_error(record: logging.LogRecord) -> bool:
    # Ignite logs inside its except block, so the exception is available.
    error = sys.exc_info()[1]
    return find_user_error(error) is None and not isinstance(error, KeyboardInterrupt)
