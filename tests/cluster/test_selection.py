"""Which cluster a call runs on: given client, cluster, address or file; default client; configuration; own cluster."""

import pytest
from distributed import Client, get_worker
from joblib import Parallel, delayed, parallel_config


def worker_name():
    return str(get_worker().name)


def square(x):
    return x * x


def used(**options):
    with parallel_config("dask", **options):
        return set(Parallel()(delayed(worker_name)() for _ in range(4)))


def test_the_given_client_before_the_default_one(small_cluster):
    small_cluster({"name": "default"}, set_as_default=True)
    given = small_cluster({"name": "given"})
    assert used(client=given) == {"given"}
    assert used() == {"default"}


def test_the_default_client_by_every_way_to_ask_for_it(small_cluster):
    small_cluster({"name": "default"}, set_as_default=True)
    assert Parallel(backend="dask")(delayed(worker_name)() for _ in range(3)) == ["default"] * 3
    assert Parallel(n_jobs=2, backend="dask")(delayed(worker_name)() for _ in range(3)) == ["default"] * 3
    config = parallel_config("dask")
    try:
        assert Parallel()(delayed(worker_name)() for _ in range(3)) == ["default"] * 3
        assert Parallel(n_jobs=-1)(delayed(worker_name)() for _ in range(3)) == ["default"] * 3
    finally:
        config.unregister()


def test_the_own_name_is_as_good(small_cluster, against):
    if against == "builtin":
        pytest.skip("has one name")
    small_cluster({"name": "default"}, set_as_default=True)
    with parallel_config("jobfleet"):
        assert Parallel()(delayed(worker_name)() for _ in range(3)) == ["default"] * 3
    assert Parallel(backend="jobfleet")(delayed(worker_name)() for _ in range(3)) == ["default"] * 3


def test_as_current_counts_as_the_default(small_cluster):
    small_cluster({"name": "default"}, set_as_default=True)
    other = small_cluster({"name": "other"})
    with other.as_current():
        assert used() == {"other"}
    assert used() == {"default"}


def test_one_block_uses_one_cluster_though_the_default_changes(small_cluster):
    first = small_cluster({"name": "first"}, set_as_default=True)
    with parallel_config("dask", client=first):
        small_cluster({"name": "second"}, set_as_default=True)
        assert set(Parallel()(delayed(worker_name)() for _ in range(4))) == {"first"}


PROGRAM = """
import sys
import distributed
import joblib
from joblib import Parallel, delayed, parallel_config

def where(_):
    return distributed.get_worker().scheduler.address

def run(expected, **options):
    with parallel_config("dask", **options):
        assert set(Parallel()(delayed(where)(i) for i in range(4))) == {expected}, options
    with parallel_config("dask", **options):
        assert Parallel()(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]

if __name__ == "__main__":
    how, address, file = sys.argv[1:]
"""

WAYS = {
    "address": "run(address, address=address)",
    "scheduler_host": "run(address, scheduler_host=address)",
    "scheduler_file": "run(address, scheduler_file=file)",
    "client": "run(address, client=distributed.Client(address, set_as_default=False))",
    "configuration": "import dask; dask.config.set({'scheduler-address': address}); run(address)",
    "environment": "run(address)",
    "default client": "client = distributed.Client(address); run(address)",
    "argument": (
        "client = distributed.Client(address)\n"
        "    assert set(Parallel(backend='dask')(delayed(where)(i) for i in range(4))) == {address}"
    ),
    "address before the default client": (
        "cluster = distributed.LocalCluster(1, processes=False, dashboard_address=':0'); "
        "client = distributed.Client(cluster); run(address, address=address); run(cluster.scheduler_address)"
    ),
    "default client before configuration": (
        "import dask; dask.config.set({'scheduler-address': address}); "
        "cluster = distributed.LocalCluster(1, processes=False, dashboard_address=':0'); "
        "client = distributed.Client(cluster); run(cluster.scheduler_address)"
    ),
    "cluster": (
        "cluster = distributed.LocalCluster(1, processes=False, dashboard_address=':0'); "
        "run(cluster.scheduler_address, client=cluster)"
    ),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_program_reaches_the_cluster(script, bare_client, bare_processes, how, against):
    if against == "builtin" and how not in ("scheduler_host", "client", "default client"):
        pytest.skip("the built-in backend does not know this way")
    address = bare_client.scheduler.address
    extra = {"DASK_SCHEDULER_ADDRESS": address} if how == "environment" else {}
    script.run(PROGRAM + f"    {WAYS[how]}\n", how, address, bare_processes.scheduler_file, **extra)


def test_a_program_that_only_imported_joblib_and_us(script, bare_client, against):
    """The name is known as an argument before any block was seen."""
    if against == "builtin":
        pytest.skip("it is not")
    script.run(
        "import sys, joblib\n"
        "if __name__ == '__main__':\n"
        "    assert joblib.Parallel(backend='dask')(joblib.delayed(abs)(-i) for i in range(3)) == [0, 1, 2]\n",
        DASK_SCHEDULER_ADDRESS=bare_client.scheduler.address,
    )


@pytest.mark.timeout(90)
def test_without_any_cluster_there_is_one_of_its_own(script, against):
    """As many worker processes as CPUs, reused by later calls, gone with the program."""
    if against == "builtin":
        pytest.skip("has none")
    out = script.run(
        """
import os
from joblib import Parallel, cpu_count, delayed, parallel_config

def pid(_):
    return os.getpid()

with parallel_config("dask"):
    first = set(Parallel(batch_size=1)(delayed(pid)(i) for i in range(40)))
    second = set(Parallel(batch_size=1)(delayed(pid)(i) for i in range(40)))
assert os.getpid() not in first | second
assert len(first | second) <= cpu_count()
print(*(first | second))
""",
        timeout_s=80,
    )
    import psutil

    from tests.witness import wait_until

    pids = [int(word) for word in out.split()]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the workers gone", 15)


def test_no_scheduler_at_the_address_is_a_clear_error(script, against):
    if against == "builtin":
        pytest.skip("another error")
    script.run(
        """
import socket
import dask
from joblib import Parallel, delayed, parallel_config
from jobfleet.errors import JobfleetError

if __name__ == "__main__":
    dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = "tcp://127.0.0.1:%d" % s.getsockname()[1]
    try:
        with parallel_config("dask", address=address):
            Parallel()(delayed(abs)(i) for i in range(3))
    except JobfleetError as error:
        assert address in str(error), error
    else:
        raise SystemExit("no error")
"""
    )


def own_error():
    from jobfleet.errors import JobfleetError

    return JobfleetError


def test_a_closed_client_is_a_clear_error(small_cluster, against):
    if against == "builtin":
        pytest.skip("another error")
    living = small_cluster({"name": "w"})
    closed = Client(living.cluster, set_as_default=False)
    closed.close()
    with pytest.raises(own_error(), match=r"(?i)closed"), parallel_config("dask", client=closed):
        Parallel()(delayed(square)(i) for i in range(3))
    assert used(client=living) == {"w"}


def test_a_client_closed_between_two_calls_is_a_clear_error(small_cluster, against):
    if against == "builtin":
        pytest.skip("another error")
    living = small_cluster({"name": "w"})
    client = Client(living.cluster, set_as_default=False)
    with parallel_config("dask", client=client):
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]
        client.close()
        with pytest.raises(own_error(), match=r"(?i)closed"):
            Parallel()(delayed(square)(i) for i in range(3))


def test_an_asynchronous_client_is_a_clear_error(small_cluster, against):
    import asyncio

    if against == "builtin":
        pytest.skip("another error")
    address = small_cluster({"name": "w"}).cluster.scheduler_address

    async def main():
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(own_error(), match=r"(?i)asynchronous"), parallel_config("dask", client=client):
                Parallel()(delayed(square)(i) for i in range(3))

    asyncio.run(main())


def test_inside_a_running_event_loop_with_a_synchronous_client(small_cluster):
    import asyncio

    client = small_cluster({"name": "w"}, {"name": "v"})

    async def main():
        with parallel_config("dask", client=client):
            results = Parallel()(delayed(square)(i) for i in range(5))
            results += list(Parallel(return_as="generator")(delayed(square)(i) for i in range(5)))
        await asyncio.sleep(0)
        return results

    assert asyncio.run(main()) == [0, 1, 4, 9, 16] * 2
