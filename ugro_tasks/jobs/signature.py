"""Signatures: what this user has launched or asked for, told from what only lies in a folder.

An experiments folder may come from elsewhere, and what lies in it may name programs, hosts and
commands. So each record that leads to an act carries an HMAC of its content, by a secret of this
user in `~/.local/state/ugro/signing.key` (or `$XDG_STATE_HOME/ugro/`), readable by its owner only.
The secret never lies in an experiments folder and is never sent to a node.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from typing import Any

import msgspec

from ..errors import RecordError
from ..files import Folder, state_home

SIGNATURE = "signature"
KEY_NAME = "signing.key"
KEY_BYTES = 32


def sign(document: dict[str, Any], purpose: str) -> dict[str, Any]:
    """Return a JSON object with this user's signature; raises RecordError without a secret.

    `purpose` keeps a record of one sort from being taken for another.
    """
    key = _key(make=True)
    signature = {"key": _name_of(key), "mac": _mac(document, purpose, key)}
    return {**document, SIGNATURE: signature}


def is_signed(document: dict[str, Any], purpose: str) -> bool:
    """Return whether a JSON object has this user's signature; raises RecordError without a secret."""
    signature = document.get(SIGNATURE)
    mac = signature.get("mac") if isinstance(signature, dict) else None
    if not isinstance(mac, str) or not mac.isascii():
        return False
    key = _key(make=False)
    return key != b"" and hmac.compare_digest(mac, _mac(document, purpose, key))


def _mac(document: dict[str, Any], purpose: str, key: bytes) -> str:
    signed = {name: value for name, value in document.items() if name != SIGNATURE}
    content = msgspec.json.encode(signed, order="sorted")
    return hmac.new(key, purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def _name_of(key: bytes) -> str:
    """Return a name of the key, by which a person can tell whose it is."""
    return hashlib.sha256(b"name\0" + key).hexdigest()[:8]


def _key(*, make: bool) -> bytes:
    """Read this user's secret; b"" if there is none, and none is to be made."""
    home = state_home()
    folder = Folder(home, "ugro")
    file = folder.file(KEY_NAME)
    try:
        if make and not file.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.make()
            # Of two first launches at once, one makes the key.
            file.create(os.urandom(KEY_BYTES))
        with file.open() as opened:
            facts = os.fstat(opened.fileno())
            key = opened.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RecordError(
            f"{error.filename}: {error.strerror}; launches are signed with a secret there. "
            "Make it usable, or set XDG_STATE_HOME"
        ) from error
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise RecordError(
            f"{file.path}: readable by others than its owner; if nobody has read it, chmod 600 it, else remove it"
        )
    if len(key) != KEY_BYTES:
        raise RecordError(f"{file.path}: damaged; remove it, and adopt what still runs")
    return key
