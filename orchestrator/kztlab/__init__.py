# SPDX-License-Identifier: GPL-2.0-or-later
"""kztlab boots guests that share one host-side page store, loads them and reports."""
