# SPDX-License-Identifier: GPL-2.0-or-later
"""cluster.yaml: its model, its loader with positions, its checks and its documentation."""

from kztlab.spec.check import HostFacts, check
from kztlab.spec.loader import dump, load
from kztlab.spec.model import (
    AnonSpec,
    Cluster,
    CollectSpec,
    FilesSpec,
    Guest,
    GuestSpec,
    StoreSpec,
    TmemSpec,
    WorkloadSpec,
)
from kztlab.spec.problem import Finding, Problem, SpecError
from kztlab.spec.schema import json_schema, reference
from kztlab.spec.template import init_text
from kztlab.spec.units import format_duration, format_size, parse_duration, parse_size

__all__ = [
    "AnonSpec",
    "Cluster",
    "CollectSpec",
    "FilesSpec",
    "Finding",
    "Guest",
    "GuestSpec",
    "HostFacts",
    "Problem",
    "SpecError",
    "StoreSpec",
    "TmemSpec",
    "WorkloadSpec",
    "check",
    "dump",
    "format_duration",
    "format_size",
    "init_text",
    "json_schema",
    "load",
    "parse_duration",
    "parse_size",
    "reference",
]
