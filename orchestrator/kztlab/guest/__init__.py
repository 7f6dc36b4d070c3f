# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens inside a guest: SSH, readiness, preparation, console.

```
shell = wait_ready(hypervisor, guest, keys, limit=300, progress=print)
prepare(shell, spec, progress=print)
shell.run("uname -r", timeout=10).stdout
```

`keys` has the private key `client` (a path) and the guests' public `host_key` (a .pub file's line).
Progress is called with (step, elapsed, limit) several times a second and may raise to interrupt.
"""

from kztlab.guest.prepare import WORKLOAD_GROUP, Prepared, prepare
from kztlab.guest.readiness import Keys, Progress, lost, wait_ready
from kztlab.guest.shell import CommandTimeout, Completed, Shell
from kztlab.hypervisor import console

__all__ = [
    "WORKLOAD_GROUP",
    "CommandTimeout",
    "Completed",
    "Keys",
    "Prepared",
    "Progress",
    "Shell",
    "console",
    "lost",
    "prepare",
    "wait_ready",
]
