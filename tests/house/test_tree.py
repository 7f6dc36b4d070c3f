# SPDX-License-Identifier: GPL-2.0-or-later
"""House rules that a reader can check by looking at the tree."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LICENCE = "SPDX-License-Identifier: GPL-2.0-or-later"
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows and that stand in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def normalized(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def names(path: Path) -> set[str]:
    """The packages a requirements file names."""
    lines = path.read_text().splitlines()
    return {normalized(line) for line in lines if re.match(r"[A-Za-z]", line)}


def test_every_source_file_names_its_licence() -> None:
    sources = tracked("*.py", "*.pyi", "*.rs", "*.sh", "*.toml", "dev", ".ci/run")
    assert len(sources) > 10
    missing = [
        str(path.relative_to(ROOT))
        for path in sources
        if not any(LICENCE in line for line in path.read_text().splitlines()[:2])
    ]
    assert not missing


@pytest.mark.parametrize("lock", ["requirements.lock", "Cargo.lock"])
def test_lock_files_name_no_host(lock: str) -> None:
    hosts = set(re.findall(r"\w+://[^\s\"]+", (ROOT / lock).read_text()))
    # Cargo's own name for its default registry, whichever mirror serves it.
    assert hosts <= {"https://github.com/rust-lang/crates.io-index"}


def test_every_pin_has_a_hash() -> None:
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", "")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_the_lock_holds_what_is_required() -> None:
    locked = names(ROOT / "requirements.lock")
    assert names(ROOT / "requirements.in") <= locked
    for distribution in ("orchestrator", "host-backend"):
        project = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())
        required = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
        assert {normalized(requirement) for requirement in required} <= locked


def test_links_between_documents_lead_somewhere() -> None:
    documents = tracked("*.md")
    assert ROOT / "README.md" in documents
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in LINK.findall(document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not broken
