# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests.

Under CI a skipped test is a failure, unless `expected_skips` in pyproject.toml knows why. No
property test fails because the machine is busy.
"""

import os
import re
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "expected_skips",
        "regular expressions of the reasons for which CI accepts a skipped test",
        type="linelist",
    )


def pytest_configure() -> None:
    # A shell without job control starts a background job with SIGINT ignored, which every program
    # that a test starts and interrupts would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(re.search(known, reason) for known in config.getini("expected_skips")):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not expect: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, collector.config)
    return report
