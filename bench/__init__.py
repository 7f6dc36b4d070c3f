# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of this machine beside those of its peers, in one run: `./dev bench`."""
