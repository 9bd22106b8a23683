"""Real hosts on one machine: own address, host name, processes, home and sshd, on a link that can be cut.

with Lab.up() as lab:
    lab.trust()                                   # what `inv init` would do
    subprocess.run([...], env=lab.environ)        # inv and ugro, as the lab's own user
    lab.hosts[1].cut()

python -m tests.lab up                            # the same by hand; then down, status
"""

from tests.lab.host import LabHost
from tests.lab.lab import Lab
from tests.lab.tools import LabError, LabUnavailable

__all__ = ["Lab", "LabError", "LabHost", "LabUnavailable"]
