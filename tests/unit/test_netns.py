"""The hosts of `tests.netns` reach each other exactly as a test has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.netns import network_or_skip
from tests.witness import wait_until

pytestmark = pytest.mark.slow

ECHO = """
import socket
served = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
served.bind(("", 5000))
print("ready", flush=True)
while True:
    data, peer = served.recvfrom(2000)
    served.sendto(data, peer)
"""

ASK = """
import socket, sys
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.settimeout(float(sys.argv[2]))
asked.connect((sys.argv[1], 5000))
asked.send(bytes(1000))
try:
    print(len(asked.recv(2000)))
except TimeoutError:
    print("silence")
"""


def reaches(one, other, patience_s=10):
    answer = one.call(sys.executable, "-c", ASK, other.address, patience_s).strip()
    assert answer in ("1000", "silence")
    return answer == "1000"


def test_links_are_cut_and_joined_and_counted():
    with network_or_skip("a", "b", "c") as (a, b, c):
        for host in (a, b, c):
            process = host.start(sys.executable, "-c", ECHO, stdout=-1, text=True)
            assert process.stdout.readline() == "ready\n"
            process.stdout.close()
        before = b.traffic()
        assert reaches(a, b)
        assert all(1000 < now - then < 3000 for now, then in zip(b.traffic(), before, strict=True))
        a.cut()
        assert not reaches(a, b, 0.3)
        assert not reaches(c, a, 0.3)
        assert reaches(b, c)
        a.restore()
        assert reaches(a, b)
        assert reaches(c, a)
        a.separate(b)
        assert not reaches(a, b, 0.3)
        assert not reaches(b, a, 0.3)
        assert reaches(a, c)
        assert reaches(c, b)
        a.reunite(b)
        assert reaches(b, a)


def test_hosts_share_no_files_and_leave_nothing(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    with network_or_skip("a", "b", own_directories=[own], size="1m") as (a, b):
        a.call("touch", own / "file")
        assert a.path(own / "file").exists()
        assert not b.path(own / "file").exists()
        assert os.listdir(own) == []
        running = a.start("sh", "-c", "setsid sleep 600 & echo $!; wait", stdout=subprocess.PIPE, text=True)
        started = Path("/proc", running.stdout.readline().strip())
        assert started.exists()
        holder = a.path("/")
    assert running.poll() is not None
    wait_until(lambda: not started.exists(), "what it has started is gone")
    wait_until(lambda: not holder.exists(), "the namespace is gone")
    assert os.listdir(own) == []
