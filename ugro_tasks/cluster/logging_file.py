"""`config/logging.yaml` in the project: the keys of `logging:` in the cluster file, which overrides it key by key.

    level: INFO
    keep_days: 7

Its imports are as slow as those of build.py, so importers load it late.
"""

from collections.abc import Mapping
from pathlib import Path

from .content import LOGGING_FILE
from .documents import document_of, refusal, text_of
from .messages import validate
from .schema import LoggingSection


def with_defaults_of_file(
    written: LoggingSection, root: Path, content: bytes, environ: Mapping[str, str]
) -> LoggingSection:
    """Return the cluster file's `logging:`, with its missing keys taken from config/logging.yaml in `root`.

    Raises ClusterFileError with every fault in that file.
    """
    path = root / LOGGING_FILE
    defaults = _section(path, text_of(path, content), environ)
    return defaults.model_copy(update=written.model_dump(exclude_unset=True))


def _section(path: Path, text: str, environ: Mapping[str, str]) -> LoggingSection:
    """Validate the file's text; empty for a file without keys, and for another program's file."""
    lines = (line.strip() for line in text.splitlines())
    if all(line.startswith("#") or not line for line in lines):
        return LoggingSection()
    document = document_of(text, environ)
    if "version" in document.data:
        # Another program's file of the same usual name, for Python's logging.config, which requires this key.
        return LoggingSection()
    section = validate(document, LoggingSection)
    if section is None:
        raise refusal(path, document.faults)
    return section
