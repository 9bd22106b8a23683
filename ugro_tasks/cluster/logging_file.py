"""`config/logging.yaml` in the project: what `logging:` of the cluster file holds, which counts over it, key by key.

    level: INFO
    keep_days: 7

Its imports are those of build.py: whoever needs it imports it late.
"""

from collections.abc import Mapping
from pathlib import Path

from .content import LOGGING_FILE
from .documents import document_of, refusal, text_of
from .messages import validate
from .schema import LoggingSection


def laid_under(
    written: LoggingSection, root: Path, content: bytes, environ: Mapping[str, str]
) -> LoggingSection:
    """Return `logging:` as the cluster file has it, with the keys that only config/logging.yaml in `root` has.

    Raises ClusterFileError, which lists every fault in that file.
    """
    path = root / LOGGING_FILE
    said = _section(path, text_of(path, content), environ)
    return said.model_copy(update=written.model_dump(exclude_unset=True))


def _section(path: Path, text: str, environ: Mapping[str, str]) -> LoggingSection:
    lines = [line.strip() for line in text.splitlines()]
    if all(line.startswith("#") for line in lines if line):
        return LoggingSection()
    document = document_of(text, environ)
    if "version" in document.data:
        # A file for Python's own logging.config, which must have this key: another program's, with the same usual name.
        return LoggingSection()
    section = validate(document, LoggingSection)
    if section is None:
        raise refusal(path, document.faults)
    return section
