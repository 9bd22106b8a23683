"""Modules that are loaded while something else is waited for."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def loading(*modules: str) -> Iterator[None]:
    """Load modules of the package while others are waited for."""

    def load() -> None:
        for module in modules:
            importlib.import_module(f"{__package__}.{module}")

    thread = threading.Thread(target=load, name="loading")
    thread.start()
    try:
        yield
    finally:
        thread.join()
