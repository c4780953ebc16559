"""Hosts on one machine that have nothing in common but a network: network and mount namespaces of Linux.

Each host is a namespace with one address and files of its own. All of them, and the switch they are plugged
into, live in processes that end with this one, and the namespaces with them: nothing is made outside of these.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.witness import wait_until

NETWORK = "192.0.2"  # reserved for documentation: nobody's
NOBODY = "02:00:00:00:00:ff"
INTERFACE = "eth0"
END_WITHIN_S = 30
CLONE_NEWNET = 0x40000000


class Unavailable(Exception):
    """This machine has no namespaces for us; the text says why."""


@contextlib.contextmanager
def _what_it_takes():
    """Turn what goes wrong while a network is made into the reason why there is none."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"no network of namespaces here: {error}") from error


class Namespace:
    """A network of its own and mounts of its own, as long as a process that waits there."""

    pid: int

    def __init__(self):
        # Its process waits for the end of its input: that comes with `close`, or with the end of this process.
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._holder = subprocess.Popen(command, text=True, **pipes)
        if self._holder.stdout.readline() != "ready\n":
            _, reason = self._holder.communicate()
            raise OSError(reason.strip())
        self.pid = self._holder.pid

    def command(self, *command):
        """Give the command that runs another one here."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *map(str, command)]

    def call(self, *command):
        """Run a short command here and give its output."""
        return subprocess.run(
            self.command(*command), stdout=subprocess.PIPE, text=True, timeout=END_WITHIN_S, check=True
        ).stdout

    def close(self):
        """End it; what still runs there keeps it alive."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._holder.communicate(timeout=END_WITHIN_S)
            return
        self._holder.kill()
        self._holder.communicate()


class Host:
    """One host of a `Network`.

    Attributes
    ----------
    name, address
        What the test calls it, and its IP address.
    """

    def __init__(self, name, number, switch, own_directories, size):
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._switch = switch
        self._port = f"port{number}"
        self._running = []
        self._namespace = Namespace()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._plug_in()
            for directory in own_directories:
                self.call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
            undo.pop_all()

    def _plug_in(self):
        self.call("ip", "link", "set", "lo", "up")
        peer = ["peer", "name", INTERFACE, "netns", str(self._namespace.pid)]
        self._switch.call("ip", "link", "add", self._port, "type", "veth", *peer)
        self._switch.call("ip", "link", "set", self._port, "master", "bridge", "up")
        self.call("ip", "address", "add", f"{self.address}/24", "dev", INTERFACE)
        self.call("ip", "link", "set", INTERFACE, "up")

    def call(self, *command):
        """Run a short command on this host and give its output."""
        return self._namespace.call(*command)

    def start(self, *command, **keywords):
        """Start a process on this host, in a process group of its own, by `subprocess.Popen`; it begins in `/`."""
        process = subprocess.Popen(self._namespace.command(*command), start_new_session=True, **keywords)
        self._running.append(process)
        return process

    def kill(self):
        """Kill all that runs on this host, at once, and wait for it."""
        running, self._running = self._running, []
        for process in running:
            process.kill()
        # And what these have started, in whatever group.
        wait_until(lambda: not self._killed(), f"nothing runs on {self.name}", END_WITHIN_S)
        for process in running:
            with process:  # closes its pipes as well
                process.wait(END_WITHIN_S)

    def _killed(self):
        """Kill what is found in the namespace; gives what that was."""
        found = []
        here = os.readlink(f"/proc/{self._namespace.pid}/ns/net")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # It may just have ended, and one that has ended but was not waited for has no namespace.
            with contextlib.suppress(OSError):
                if int(pid) not in (self._namespace.pid, os.getpid()) and os.readlink(f"/proc/{pid}/ns/net") == here:
                    os.kill(int(pid), signal.SIGKILL)
                    found.append(pid)
        return found

    def enter(self):
        """Have this process, which must have one thread only, live on the host's network, with its own files."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self._namespace.pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network of {self.name}")

    def cut(self):
        """Cut the link, as far away from the host as can be: packets are lost in silence, both ways."""
        self._switch.call("ip", "link", "set", self._port, "nomaster")

    def restore(self):
        """Join the link again."""
        self._switch.call("ip", "link", "set", self._port, "master", "bridge")

    def separate(self, other):
        """Lose all packets between this host and another; both still reach everybody else."""
        for one, two in ((self, other), (other, self)):
            one.call("ip", "neigh", "replace", two.address, "lladdr", NOBODY, "dev", INTERFACE, "nud", "permanent")

    def reunite(self, other):
        """Undo `separate`."""
        for one, two in ((self, other), (other, self)):
            one.call("ip", "neigh", "del", two.address, "dev", INTERFACE)

    def traffic(self):
        """Give the bytes that this host has received and sent over its link."""
        lines = Path(f"/proc/{self._namespace.pid}/net/dev").read_text().splitlines()
        counts = next(line.split(":")[1].split() for line in lines if line.strip().startswith(f"{INTERFACE}:"))
        return int(counts[0]), int(counts[8])

    def path(self, path):
        """Give the path by which this process sees a file of that host."""
        return Path(f"/proc/{self._namespace.pid}/root", *Path(path).parts[1:])

    def close(self):
        """Kill what runs here, and end the host."""
        try:
            self.kill()
        finally:
            self._namespace.close()


class Network:
    """Hosts joined by a switch.

    Parameters
    ----------
    own_directories
        Existing directories in whose place each host has an empty one in memory that no other sees.
    size
        Of each of these, as `mount` takes it for a tmpfs.

    Raises
    ------
    Unavailable
        When it is made, or a host is added: the machine does not allow it. It takes root's rights, the commands of
        util-linux and iproute2, and a kernel with namespaces.
    """

    def __init__(self, own_directories=("/dev/shm",), size="50%"):
        self.hosts = {}
        self._own_directories = own_directories
        self._size = size
        with contextlib.ExitStack() as undo, _what_it_takes():
            self._switch = Namespace()
            undo.callback(self._switch.close)
            self._switch.call("ip", "link", "add", "bridge", "type", "bridge")
            self._switch.call("ip", "link", "set", "bridge", "up")
            undo.pop_all()

    def add(self, name):
        """Add a host."""
        with _what_it_takes():
            host = Host(name, len(self.hosts) + 1, self._switch, self._own_directories, self._size)
        self.hosts[name] = host
        return host

    def close(self):
        """End all hosts, with all that runs there."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._switch.close)
            for host in self.hosts.values():
                stack.callback(host.close)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@contextlib.contextmanager
def network_or_skip(*names, **keywords):
    """Give the hosts of a network, or skip the test where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Network(**keywords))
            hosts = [network.add(name) for name in names]
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield hosts
