"""Thread pools inside tasks are limited as asked, and left as they were."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

from jobfleet._worker.threads import limited


def blas_threads():
    np.linalg.inv(np.eye(2))
    counts = {lib.num_threads for lib in threadpoolctl.ThreadpoolController().lib_controllers if lib.user_api == "blas"}
    (count,) = counts
    return count


@pytest.fixture
def three():
    """The process's pools have three threads, whatever the machine."""
    with threadpoolctl.threadpool_limits(3):
        yield


@pytest.fixture
def fresh_thread():
    with ThreadPoolExecutor(1) as pool:
        yield lambda function: pool.submit(function).result(20)


def under(explicit, default):
    with limited(explicit, default):
        return blas_threads()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.usefixtures("three")
def test_an_explicit_number_holds_for_the_chunk(threads):
    assert under(threads, 1) == threads
    assert blas_threads() == 3


@pytest.mark.usefixtures("three")
def test_the_pools_come_back_when_the_chunk_fails():
    with pytest.raises(KeyError), limited(1, None):
        raise KeyError
    assert blas_threads() == 3


@pytest.mark.usefixtures("three")
def test_a_chunk_inside_a_chunk():
    with limited(2, None):
        assert under(1, None) == 1
        assert blas_threads() == 2


@pytest.mark.parametrize(("default", "expected"), [(1, 1), (3, 3), (8, 3)])
@pytest.mark.usefixtures("three")
def test_a_default_only_lowers_and_stays(default, expected, fresh_thread):
    assert fresh_thread(lambda: under(None, default)) == expected
    assert blas_threads() == expected
    assert fresh_thread(lambda: under(None, default)) == expected


@pytest.mark.usefixtures("three")
def test_a_library_that_comes_later_is_limited_then(fresh_thread, monkeypatch):
    assert fresh_thread(lambda: under(None, 2)) == 2
    threadpoolctl.threadpool_limits(3)
    monkeypatch.setitem(sys.modules, "another_library", sys)
    assert fresh_thread(lambda: under(None, 2)) == 2


@pytest.mark.parametrize("first_to_end", ["outer", "other"])
@pytest.mark.usefixtures("three")
def test_chunks_side_by_side(first_to_end, fresh_thread):
    """Whichever ends first, the other's limit stays, and all is as before at the end."""
    here, other = limited(2, None), limited(1, None)
    here.__enter__()
    fresh_thread(other.__enter__)
    assert blas_threads() == 1
    if first_to_end == "outer":
        here.__exit__(None, None, None)
        assert blas_threads() == 1
        fresh_thread(lambda: other.__exit__(None, None, None))
    else:
        fresh_thread(lambda: other.__exit__(None, None, None))
        assert blas_threads() == 2
        here.__exit__(None, None, None)
    assert blas_threads() == 3


@pytest.mark.usefixtures("three")
def test_a_default_lowers_what_comes_back_after_an_explicit_number(fresh_thread):
    with limited(4, None):
        fresh_thread(lambda: under(None, 2))
        assert blas_threads() == 4
    assert blas_threads() == 2


@pytest.mark.usefixtures("three")
def test_users_can_still_set_limits_from_any_thread(fresh_thread):
    def user():
        with threadpoolctl.threadpool_limits(4):
            return blas_threads()

    with limited(1, None):
        assert fresh_thread(user) == 4


@pytest.mark.usefixtures("three")
def test_nothing_is_touched_without_limits():
    assert under(None, None) == 3


def test_openmp_has_a_limit_per_thread_and_may_come_later():
    pytest.importorskip("sklearn")
    code = """
import numpy, threadpoolctl
from jobfleet._worker.threads import limited

def openmp():
    info = threadpoolctl.threadpool_info()
    return {lib["num_threads"] for lib in info if lib["user_api"] == "openmp"}

with limited(None, 2): print(openmp())
import sklearn.ensemble
print(openmp())
with limited(None, 2): print(openmp())
with limited(1, 2): print(openmp())
print(openmp())
"""
    env = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split("\n")[:-1] == ["set()", "{3}", "{2}", "{1}", "{2}"]


def test_without_threadpoolctl_an_explicit_number_warns_the_client():
    code = """
import sys
sys.modules["threadpoolctl"] = None
from jobfleet._worker.capture import Capture
from jobfleet._worker.threads import limited
error = (("error", None, (("builtins", "Warning"),), None, 0),)
with Capture(error) as capture:
    with limited(None, 1): pass
    assert capture.take() == ()
    with limited(2, 1): pass
    events = capture.take()
print(events[0][1], len(events))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("inner_max_num_threads=2 has no effect: threadpoolctl is not")
    assert done.stdout.endswith(" 1\n")
