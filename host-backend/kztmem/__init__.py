# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmem: the page store's daemon, over the Rust core `kztmem._core`."""
