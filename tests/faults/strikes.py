"""What strikes: each takes the scene and the process of the task that is held, and does it for real.

When one returns, the gate of the held task opens.
"""

import contextlib
import os
import signal
import time

import psutil
from distributed import Client

from tests.faults import tasks
from tests.witness import marks, wait_until

#: How long what comes back is away.
AWAY_S = 2.0

#: A worker may take so long to come: as long as tasks wait at their gate.
COMES_WITHIN_S = tasks.HELD_S


def kill(scene, pid):
    os.kill(pid, signal.SIGKILL)


def kill_with_nanny(scene, pid):
    psutil.Process(pid).parent().kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def retire(scene, pid):
    # Somebody else does: our own client may be held up.
    with Client(scene.client.scheduler.address, set_as_default=False) as other:
        other.retire_workers([next(address for address, its in other.run(os.getpid).items() if its == pid)])


def freeze(scene, pid):
    scene.at_the_end.callback(thaw, pid)
    os.kill(pid, signal.SIGSTOP)


def thaw(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def freeze_for_a_moment(scene, pid):
    freeze(scene, pid)
    time.sleep(AWAY_S)
    thaw(pid)


def kill_all(scene, pid):
    for process in scene.workers:
        process.kill()


def kill_all_and_start_one(scene, pid):
    kill_all(scene, pid)
    wait_until(lambda: not scene.on_scheduler(n_workers), "no worker is left")
    scene.start_worker()


def start_one(scene, pid):
    """Have a worker join, and wait until it has got work: the others, who are held up, keep theirs."""
    known = {mark["pid"] for mark in marks(scene.directory / "ran")}
    scene.start_worker()
    wait_until(
        lambda: {m["pid"] for m in marks(scene.directory / "ran")} - known, "the new worker gets work", COMES_WITHIN_S
    )


def kill_scheduler(scene, pid):
    give_up_soon(scene)
    for process in scene.processes.running:
        process.kill()


def give_up_soon(scene):
    """Have the client look for its scheduler for no more than 2 s."""
    scene.client._timeout = 2
    scene.at_the_end.callback(let_go, scene.client)


def let_go(client):
    """Close a client that has lost its scheduler; one that has closed itself leaves its thread."""
    client.close()
    client._loop_runner.stop(10)


def restart_scheduler(scene, pid):
    """Kill the scheduler, and with it its workers; another one comes to its address, with other workers."""
    port = scene.client.scheduler.address.rpartition(":")[2]
    for process in scene.processes.running:
        process.kill()
        process.wait()
    scene.processes.scheduler_file.unlink()
    scene.processes.start_scheduler(port)
    for _ in range(scene.row.workers):
        scene.start_worker()


def cut(host, scene):
    scene.at_the_end.callback(host.restore)
    host.cut()


def cut_worker(scene, pid):
    cut(scene.processes.host_of(pid), scene)


def cut_worker_for_a_moment(scene, pid):
    cut_for_a_moment(scene.processes.host_of(pid))


def cut_client(scene, pid):
    give_up_soon(scene)
    cut(scene.processes.host_of(None), scene)


def cut_client_for_a_moment(scene, pid):
    cut_for_a_moment(scene.processes.host_of(None))


def cut_for_a_moment(host):
    host.cut()
    time.sleep(AWAY_S)
    host.restore()


def fill_disk(scene, pid):
    """Leave no room on the file system of buffers and of the workers."""
    with open(scene.disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(2**16))


def n_workers(dask_scheduler):
    return len(dask_scheduler.workers)
