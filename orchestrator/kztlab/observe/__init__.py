# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching a lab: samplers, the collector that runs them, and the run directory they fill."""

from kztlab.observe.collector import Collector
from kztlab.observe.guest import GuestSampler
from kztlab.observe.host import HostSampler
from kztlab.observe.run import RunDirectory
from kztlab.observe.sampler import Poller, Sampler
from kztlab.observe.samples import Recorder, Sample, read_samples
from kztlab.observe.store import StoreSampler

__all__ = [
    "Collector",
    "GuestSampler",
    "HostSampler",
    "Poller",
    "Recorder",
    "RunDirectory",
    "Sample",
    "Sampler",
    "StoreSampler",
    "read_samples",
]
