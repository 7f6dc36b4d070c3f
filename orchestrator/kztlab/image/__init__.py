# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: built from a recipe without a mount, cached by everything that went into them.

An image is a root disk (qcow2, never written: guests get overlays), a kernel and an initrd. What
differs from lab to lab is kept out of it: the lab's SSH keys ride in a second archive behind the
initrd (`lab_initrd`), the host name on the kernel's command line.
"""

from kztlab.image.build import NEEDED
from kztlab.image.cache import Image, ensure, list_images, remove
from kztlab.image.initrd import lab_initrd
from kztlab.image.sources import KEYRING

__all__ = ["KEYRING", "NEEDED", "Image", "ensure", "lab_initrd", "list_images", "remove"]
