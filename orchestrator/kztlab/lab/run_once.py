# SPDX-License-Identifier: GPL-2.0-or-later
"""`run`: a lab up, its workloads, its report, and down again whatever happens."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, Interrupted, KztlabError
from kztlab.lab import record
from kztlab.lab.down import down_locked, release_host
from kztlab.lab.lock import locked
from kztlab.lab.up import admitted, up_locked

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.lab.plan import Options
    from kztlab.lab.progress import Progress
    from kztlab.lab.run import Result
    from kztlab.places import Places


def run_once(
    places: Places, spec: Path, options: Options, progress: Progress, *, keep_failed: bool
) -> Result:
    """Like `up`, and the lab goes down at the end; with `keep_failed` not if something failed.

    Raises `BadInput` if the lab is up already: it is not this command's to take down.
    """
    cluster = admitted(places, spec)
    lab = cluster.lab
    with ExitStack() as stack:
        stack.callback(release_host, places)  # once the lab is let go of
        stack.enter_context(locked(places, lab))
        if record.find(places, lab) is not None:
            raise BadInput(
                f"the lab {lab} is up already",
                hint=f"take it down first: kztlab down {lab}; or give the file another `lab:`",
            )
        keep = False
        failure: KztlabError | None = None
        try:
            result = up_locked(places, spec, cluster, options, progress)
            failure = result.failure
            keep = keep_failed and failure is not None
        except Interrupted as error:
            failure = Interrupted(f"interrupted; the lab {lab} is down again")
            raise failure from error
        except KztlabError as error:
            failure = error
            raise
        finally:
            if not keep:
                _take_down(places, lab, progress, failure)
    return result


def _take_down(places: Places, lab: str, progress: Progress, failure: KztlabError | None) -> None:
    """End the lab; should that fail after a `failure`, it is the failure that ends the command."""
    try:
        down_locked(places, lab, progress)
    except KztlabError as error:
        if failure is None:
            raise
        progress.done(lab, error.message, ok=False)
