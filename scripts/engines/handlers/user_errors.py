"""Keeps the engine from telling a user's error before it is told."""

from __future__ import annotations

import logging
import sys

from ignite.engine import Engine

from scripts.runtime.error_report import find_user_error

__all__ = ["UserErrorsOnce"]


class UserErrorsOnce:
    """Drops the engine's own log lines about an error that the message at the end explains.

    Ignite logs every exception that passes through an engine, twice. What is neither a
    `TractAtlasError` nor an interruption by the user is still logged.
    """

    def attach(self, engine: Engine) -> None:
        """Filter what the engine logs."""
        engine.logger.addFilter(_not_of_a_user_error)


def _not_of_a_user_error(record: logging.LogRecord) -> bool:
    # Ignite logs from inside its except block, so that the exception is at hand.
    error = sys.exc_info()[1]
    return find_user_error(error) is None and not isinstance(error, KeyboardInterrupt)
