# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the reference page: ``python -m kztlab.spec > docs/cluster-yaml.md``."""

import sys

from kztlab.spec.schema import reference

if __name__ == "__main__":
    sys.stdout.write(reference())
