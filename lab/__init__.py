"""Real hosts on one machine: own address, host name, processes, home and sshd, on a link that can be cut.

with Lab.up() as lab:
    lab.trust()                                   # what `inv init` would do
    subprocess.run([...], env=lab.environ)        # inv and ugro, as the lab's own user
    lab.hosts[1].cut()

python -m lab up                            # the same by hand; then down, status
"""

from lab.host import LabHost
from lab.lab import Lab
from lab.tools import LabError, LabUnavailable

__all__ = ["Lab", "LabError", "LabHost", "LabUnavailable"]
