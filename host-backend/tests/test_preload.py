# SPDX-License-Identifier: GPL-2.0-or-later
"""A forked serving process may not be able to read files of the program: nothing is left to load.

The program below loads what a supervisor loads, then is the serving process itself, answers
requests of every kind and says which modules came in late.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.daemon import remove

_PROGRAM = """\
    import http.client, logging, os, signal, socket, sys, threading
    from pathlib import Path
    from kztmem import cli, preload
    from kztmem.plan import make_plan
    from kztmem.serving import api_path, bind_api, serve
    from kztmem.statedir import StateDir

    options = ["--state", sys.argv[1], "--memory", "8MiB", "--client", "a:1MiB"]
    settings = cli.parse(options).settings
    settings.state.mkdir()
    state = StateDir(settings.state)
    plan = make_plan(settings, state)
    listener = bind_api(api_path(plan.sockets))
    preload.load()
    before = set(sys.modules)

    def request(method, path, body=None):
        connection = http.client.HTTPConnection("kztmemd")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(api_path(plan.sockets)))
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def requests():
        print(
            request("GET", "/v1/status"),
            request("GET", "/metrics"),
            request("GET", "/openapi.json"),
            request("POST", "/v1/clients", '{"name": "b", "swap": "1MiB"}'),
            request("POST", "/v1/clients", '{"nam": "b"}'),
            request("POST", "/v1/clients", "{"),
            request("DELETE", "/v1/clients/b"),
            request("GET", "/nothing"),
        )
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(line, warnings):
        threading.Thread(target=requests).start()

    code = serve(plan, state, listener, ready, supervisor=None, warnings=[])
    print(code, sorted(set(sys.modules) - before))
"""


def test_nothing_is_loaded_late(tmp_path: Path) -> None:
    state = tmp_path / "s"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(state)],
        capture_output=True,
        text=True,
        check=False,
    )
    remove(state)
    assert done.stdout.splitlines() == ["200 200 200 201 400 400 204 404", "0 []"], done.stderr
