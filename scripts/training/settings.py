"""The settings of a run.

    settings, options = read(sys.argv[1:], os.environ)
    settings.lora.rank       # 16

UGRO gives all of them in UGRO_SETTINGS, complete and checked; they are used unchanged. By hand each of these sources
overrides the one before: config/training_defaults.yaml, --config, flags, --set. See by_hand.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

from .faults import STOPPED_BY_FAULT, Fault


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors, without the usage, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(STOPPED_BY_FAULT, f"{self.prog}: {message}\n")


class Settings(SimpleNamespace):
    """All settings by section, or those of a section by key."""

    def __getattr__(self, name: str) -> NoReturn:
        """Raise Fault for a missing setting: UGRO and this script are of different versions."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise Fault(
            f"UGRO_SETTINGS has no {name!r}; are these the scripts of the UGRO that sent them?"
        )


def read(
    arguments: Sequence[str], environ: Mapping[str, str]
) -> tuple[Settings, argparse.Namespace]:
    """Return the settings by section and key, and the other flags: job_id, resume.

    Raises Fault for unusable settings.
    """
    parser = Parser(
        prog="train_production", description="Fine-tune a causal language model."
    )
    parser.add_argument("--model-name", help="model.name: on the hub, or a folder")
    parser.add_argument(
        "--dataset-name", help="dataset.name: on the hub, or a file or folder"
    )
    parser.add_argument("--num-epochs", help="training.num_epochs")
    parser.add_argument("--learning-rate", help="training.learning_rate")
    parser.add_argument("--job-id", default=environ.get("UGRO_JOB_ID", "local"))
    parser.add_argument(
        "--config", help="a YAML file like config/training_defaults.yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )
    parser.add_argument(
        "--resume",
        default=environ.get("UGRO_RESUME"),
        metavar="PATH|latest",
        help="a checkpoint",
    )
    options = parser.parse_args(arguments)
    text = environ.get("UGRO_SETTINGS")
    values = _by_hand(options) if text is None else _from_ugro(text, options)
    sections = {section: Settings(**keys) for section, keys in values.items()}
    return Settings(**sections), options


def _from_ugro(text: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Read UGRO_SETTINGS. The flags of the contract repeat some of them, and are ignored. Raises Fault."""
    if options.set or options.config:
        raise Fault("--set and --config are for runs by hand; use --set of inv launch")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise Fault(f"UGRO_SETTINGS is not JSON: {error}") from error
    no_sections = "UGRO_SETTINGS is not a JSON object of sections"
    if not isinstance(settings, dict):
        raise Fault(no_sections)
    if not all(isinstance(keys, dict) for keys in settings.values()):
        raise Fault(no_sections)
    return settings


def _by_hand(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    try:
        # Late: on a node, config/ and perhaps PyYAML are missing.
        from .by_hand import settings_by_hand
    except ImportError as error:
        raise Fault(
            f"by hand, without UGRO_SETTINGS, it runs in a checkout of UGRO and needs PyYAML: {error}"
        ) from error
    return settings_by_hand(options)
