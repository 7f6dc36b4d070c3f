# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd as kztlab sees it: its HTTP API on a unix socket, and its life as a detached daemon."""

from kztlab.store.client import Client, StoreClient, StoreRefused, StoreUnreachable
from kztlab.store.daemon import Daemon

__all__ = ["Client", "Daemon", "StoreClient", "StoreRefused", "StoreUnreachable"]
