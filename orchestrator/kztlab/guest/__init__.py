# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens inside a guest: SSH, readiness, preparation, console."""
