"""A login whose python3 is not Python: it answers every request in the way that the file `mode` beside it says."""

import json
import os
import sys
import time

MARK = b"\x1eUGRO "
mode = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mode")).read()
out, err = sys.stdout.buffer, sys.stderr.buffer
if mode == "garbage without end":
    while True:
        out.write(os.urandom(1 << 16))
elif mode == "an answer without end":
    out.write(MARK + b'{"a": "')
    while True:
        out.write(b"x" * (1 << 16))
elif mode == "a complaint without end":
    while True:
        err.write(b"\x1b[31mno\xff\n" * 1000)
elif mode == "a byte now and then":
    out.write(MARK)
    while True:
        out.write(b" ")
        out.flush()
        time.sleep(0.05)
elif mode == "tricks":
    err.write(
        b"\x1b]0;owned\x07\x9b31m \xe2\x80\xae [red] \xff " + b"x" * 100_000 + b"\n"
    )
    sys.exit(3)
elif mode == "nesting":
    out.write(MARK + b"[" * 1_000_000 + b"\n")
elif mode == "another answer":
    sys.stdin.buffer.read(int(sys.argv[-1]))
    request = json.loads(sys.stdin.buffer.readline())
    out.write(
        MARK
        + json.dumps(
            {
                "error": "busy",
                "holder": {"job": "\x1b[2J" * 10_000},
                "op": request["op"],
            }
        ).encode()
        + b"\n"
    )
elif mode == "nothing":
    pass
out.flush()
