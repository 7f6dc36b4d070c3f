# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads: what runs in the guests, how it is run and what came of it."""

from kztlab.workload.result import FilesReport, LoadReport, Outcome
from kztlab.workload.schedule import Runner, run_all

__all__ = ["FilesReport", "LoadReport", "Outcome", "Runner", "run_all"]
