# SPDX-License-Identifier: GPL-2.0-or-later
"""The root conftest.py: what becomes of a skipped test under CI and outside."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

SKIPPED_WHILE_RUNNING = """
import pytest
def test_it():
    pytest.skip("no such program: frobnicate")
"""
SKIPPED_WHILE_COLLECTING = """
import pytest
pytest.skip("no such program: frobnicate", allow_module_level=True)
"""
SKIPPED_BY_MARK = """
import pytest
@pytest.mark.skipif(True, reason="no such program: frobnicate")
def test_it():
    raise AssertionError
"""
XFAILED = """
import pytest
@pytest.mark.xfail(strict=True)
def test_it():
    raise AssertionError
"""


@pytest.fixture(autouse=True)
def _with_the_roots_conftest(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "conftest.py").read_text())


@pytest.mark.parametrize("source", [SKIPPED_WHILE_RUNNING, SKIPPED_BY_MARK])
def test_ci_fails_on_an_unexpected_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(source)
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines("*CI does not expect: *frobnicate*")
    assert result.ret != pytest.ExitCode.OK


def test_ci_fails_on_a_module_that_skips_itself(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(SKIPPED_WHILE_COLLECTING)
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines("*CI does not expect: *frobnicate*")
    assert result.ret != pytest.ExitCode.OK


@pytest.mark.parametrize(
    "source", [SKIPPED_WHILE_RUNNING, SKIPPED_WHILE_COLLECTING, SKIPPED_BY_MARK]
)
def test_ci_accepts_an_expected_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makeini("[pytest]\nexpected_skips =\n    no such program: frob")
    pytester.makepyfile(source)
    pytester.runpytest_inprocess().assert_outcomes(skipped=1)


def test_ci_accepts_an_expected_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(XFAILED)
    pytester.runpytest_inprocess().assert_outcomes(xfailed=1)


def test_a_skip_is_a_skip_outside_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(SKIPPED_WHILE_RUNNING)
    pytester.runpytest_inprocess().assert_outcomes(skipped=1)
