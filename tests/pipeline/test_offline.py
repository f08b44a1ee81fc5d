"""Once installed, nothing needs a network."""

import subprocess
import sys

import pytest


def test_there_is_no_network_but_the_loopback(offline):
    if not offline:
        pytest.skip("needs unshare, and the right to use it")
    code = (
        "import socket; server = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(server.getsockname()); print('loopback'); "
        "socket.create_connection(('192.0.2.1', 80), timeout=5)"
    )
    done = subprocess.run([*offline, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "loopback\n"
    assert "unreachable" in done.stderr
