"""Own tests for behaviours whose upstream test looks at joblib's built-in Dask backend from inside.

`exclusions` names for each test that is left out for that the one here. They pass with the built-in backend too.
"""

import itertools
import time
import uuid

import distributed
import numpy as np
import pytest
from dask.sizeof import sizeof
from joblib import Parallel, delayed, parallel_config
from joblib.test.test_dask import CountSerialized, add5


@pytest.fixture
def client():
    """Two workers, and the client that is the default one."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_short_tasks_travel_together(client):
    """For ``test_dask_backend_uses_autobatching``."""
    n_tasks = 10_000
    with parallel_config("dask"), Parallel() as parallel:
        assert parallel(delayed(lambda: None)() for _ in range(n_tasks)) == [None] * n_tasks

    def ended(dask_scheduler):
        return sum(finish == "memory" for _, _, finish, *_ in dask_scheduler.transition_log)

    assert 1 < client.run_on_scheduler(ended) < n_tasks / 10


def held_here(*args, **kwargs):
    """Say which worker this is and how much data Dask keeps there."""
    worker = distributed.get_worker()
    return worker.address, sum(sizeof(value) for value in worker.data.values())


def test_a_large_argument_is_held_once_by_a_worker(client):
    """For ``test_auto_scatter``."""
    array = np.ones(2**23, dtype=np.uint8)
    with parallel_config("dask"):
        held = Parallel(batch_size=1)(delayed(held_here)(array, i, [array], opt=array) for i in range(12))
    assert max(nbytes for _, nbytes in held) < 1.5 * array.nbytes


def test_a_changed_argument_is_sent_anew(client):
    """For ``test_no_undesired_distributed_cache_hit``."""
    x = np.arange(int(1e6))

    def isolated_operation(items, data=None):
        if data is not None:
            np.testing.assert_array_equal(data, x)
        items.append(uuid.uuid4().hex)
        return items

    lists = [[] for _ in range(100)]
    with parallel_config("dask"):
        for data in (None, x):
            results = Parallel()(delayed(isolated_operation)(items, data=data) for items in lists)
            assert [len(items) for items in results] == [1] * 100
            assert lists == [[]] * 100
            assert len(set(itertools.chain(*results))) == 100


def test_scattered_objects_are_pickled_no_more_than_by_dask(client):
    """For ``test_manual_scatter``, which asks for as many."""
    w, x, y, z = objects = [CountSerialized(i) for i in range(4)]
    calls = [delayed(add5)(x, y, z, d=4, e=5) for _ in range(10)]
    calls += [delayed(add5)(x, z, y, d=5, e=4), delayed(add5)(y, x, z, d=x, e=5), delayed(add5)(z, z, x, d=z, e=y)]
    with parallel_config("dask", scatter=[w, x, y]):
        results = Parallel(batch_size=1)(calls)
    assert results == [function(*args, **kwargs) for function, args, kwargs in calls]
    ours = [thing.count for thing in objects]
    for thing in objects:
        thing.count = 0

    scattered = {id(thing): client.scatter(thing, broadcast=True) for thing in (w, x, y)}
    for function, args, kwargs in calls:
        args = [scattered.get(id(value), value) for value in args]
        kwargs = {name: scattered.get(id(value), value) for name, value in kwargs.items()}
        client.submit(function, *args, **kwargs, key=uuid.uuid4().hex).result()
    for count, native in zip(ours, [thing.count for thing in objects], strict=True):
        assert 1 <= count <= native


def test_large_arguments_are_gone_after_a_call(client):
    """For ``test_memmapping_leaks``."""
    arrays = [np.full(2**21, i, dtype=np.uint8) for i in range(4)]
    with parallel_config("dask"), Parallel() as parallel:
        assert parallel(delayed(np.ndarray.max)(array) for array in arrays) == [0, 1, 2, 3]
        deadline = time.monotonic() + 10
        while any(client.run(lambda dask_worker: len(dask_worker.data)).values()):
            assert time.monotonic() < deadline, "data of a call that ended is still on the workers"
            time.sleep(0.02)


initialised_with = None


def initialise(value):
    """Leave the value in the process."""
    globals()["initialised_with"] = value


def read_initialised():
    """Give what the process was initialised with."""
    return initialised_with


def test_new_initargs_initialise_the_same_workers_anew(client):
    """For ``test_initializer_not_reused``."""
    with parallel_config("dask"):
        for value in (1, 2, 3):
            seen = Parallel(batch_size=1, initializer=initialise, initargs=(value,))(
                delayed(read_initialised)() for _ in range(10)
            )
            assert set(seen) == {value}
