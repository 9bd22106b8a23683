"""An rsync that gives another tree than it was asked for, and forgets what it was told to leave out."""

import os
import sys

REAL = "/usr/bin/rsync"
here = os.path.dirname(os.path.abspath(__file__))
mode = open(os.path.join(here, "mode")).read()
flags = [os.fsencode(word) for word in sys.argv[1:]]
if any(flag.startswith(b"-s") for flag in flags):
    # The rest comes on stdin, up to an empty word.
    said = b""
    while not said.endswith(b"\0\0"):
        said += os.read(0, 1)
    words = said[:-2].split(b"\0")[1:]
    flags = [b"-" + flag[2:] if flag.startswith(b"-s") else flag for flag in flags]
    flags += words[: words.index(b".")]
else:
    flags = flags[: flags.index(b".")]
flags = [flag for flag in flags if flag != b"--safe-links"]
if mode == "garbage":
    while True:
        os.write(1, os.urandom(1 << 16))
if mode == "tricks":
    os.write(2, b"\x1b]0;owned\x07\xff\x9b31m [red]\n" * 1000)
    sys.exit(11)
tree = os.path.join(os.fsencode(here), b"tree") + b"/"
sources = [tree + name for name in os.listdir(tree)] if mode == "named" else [tree]
os.execv(REAL, [b"rsync", *flags, b".", *sources])
