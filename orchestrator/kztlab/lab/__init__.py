# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab's life: planned, brought up, run, shown and taken down; its state on disk."""
