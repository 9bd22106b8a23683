"""Real hosts on one machine, each with an address, name, processes, home, sshd and a link to cut.

with Lab.up() as lab:
    lab.trust()                                   # as `inv init` does
    subprocess.run([...], env=lab.environ)        # inv and ugro, as the lab's own user
    lab.hosts[1].cut()

python -m lab up                            # the same by hand; then down, status
"""

from lab.host import LabHost
from lab.lab import Lab
from lab.tools import LabError, LabUnavailable

__all__ = ["Lab", "LabError", "LabHost", "LabUnavailable"]
