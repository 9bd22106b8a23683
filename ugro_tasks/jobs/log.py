"""The application logs beside the experiments: a record of UGRO's acts and reasons."""

from __future__ import annotations

import logging
from logging.handlers import TimedRotatingFileHandler

from ..cluster.model import Cluster
from ..errors import RecordError
from ..text import printable_lines

# A log on a full disk must not print an error to the user's terminal for each line.
logging.raiseExceptions = False


class _Plain(logging.Formatter):
    """A formatter for terminals; log lines quote text from nodes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def open_log(name: str, cluster: Cluster) -> logging.Logger:
    """Open the logger for <logs>/<name>.log, rotated at midnight.

    Old logs are kept as long as the cluster file says. Raises RecordError if the folder cannot be
    written.
    """
    logger = logging.getLogger(f"ugro.{name}")
    if not logger.handlers:
        try:
            cluster.logs.mkdir(parents=True, exist_ok=True)
            handler = TimedRotatingFileHandler(
                cluster.logs / f"{name}.log",
                when="midnight",
                backupCount=cluster.logging.keep_days,
                encoding="utf-8",
                delay=True,
            )
        except OSError as error:
            raise RecordError(
                f"{error.filename}: {error.strerror}; set paths.logs in the cluster file"
            ) from error
        handler.setFormatter(_Plain(cluster.logging.format))
        logger.addHandler(handler)
        logger.setLevel(cluster.logging.level)
        logger.propagate = False
    return logger
