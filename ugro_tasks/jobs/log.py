"""The application logs beside the experiments: what UGRO did and why, enough to explain any job afterwards."""

from __future__ import annotations

import logging
from logging.handlers import TimedRotatingFileHandler

from ..cluster.model import Cluster
from ..errors import RecordError
from ..text import printable_lines

# A log that cannot be written, on a full disk, is no reason to say so on the user's terminal at each line.
logging.raiseExceptions = False


class _Plain(logging.Formatter):
    """Lines that a terminal may have: they quote what nodes say."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def open_log(name: str, cluster: Cluster) -> logging.Logger:
    """The logger that writes <logs>/<name>.log, rotated at midnight and kept for as long as the cluster file says.

    Raises RecordError where the folder cannot be written.
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
