"""A rank that has the user's systemd start what goes on after it: one here, and --program elsewhere."""

import argparse
import os
import subprocess

parser = argparse.ArgumentParser()
parser.add_argument("--program")
options, _ = parser.parse_known_args()
if os.environ["RANK"] == "1":
    start = ["systemd-run", "--user", "--quiet"]
    subprocess.run([*start, "--same-dir", "sleep", "601"], check=True)
    subprocess.run([*start, options.program, "602"], check=True)
    subprocess.run([*start, "sleep", "603"], check=True)
