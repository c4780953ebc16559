"""What waits in the embedded cluster gets the first slot that is free, whichever that is."""

import pytest

CALL = """
from joblib import Parallel, delayed, parallel_config

N_TASKS = {n_tasks}

def square(i, directory=None, last=None):
    if directory is not None:
        open(os.path.join(directory, str(i)), "x").close()
    return waiting(directory) if i == last else i * i

def waiting(directory):
    "Give how many chunks at most have waited on this task's worker until all other tasks had begun."
    from distributed import get_worker
    most, tasks, deadline = 0, get_worker().state.tasks, time.monotonic() + 20
    while len(os.listdir(directory)) < N_TASKS and time.monotonic() < deadline:
        most = max(most, sum(task.state == "ready" for task in list(tasks.values())))
        time.sleep(0.001)
    return most, len(os.listdir(directory))

os.mkdir("begun")
directory = os.path.abspath("begun")
with parallel_config("dask", n_jobs={n_jobs}):
    Parallel(batch_size=1)(delayed(square)(i) for i in range(N_TASKS))  # so durations are known
    # Dask takes tasks for a larger group as long as it has not forgotten these.
    while embedded_client().run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        time.sleep(0.01)
    results = Parallel(batch_size=1)(delayed(square)(i, directory, {last}) for i in range(N_TASKS))
print(results.pop({last}), results == [i * i for i in range(N_TASKS) if i != {last}])
"""


@pytest.mark.parametrize(("n_jobs", "n_tasks", "last"), [(-1, 60, 3), (2, 60, 30), (2, 4, 0)])
def test_no_chunk_waits_behind_one_that_takes_long(program, n_jobs, n_tasks, last):
    call = CALL.format(n_jobs=n_jobs, n_tasks=n_tasks, last=last)
    assert program.run_script(call) == f"(0, {n_tasks}) True\n"


IN_ORDER = """
from joblib import Parallel, delayed, parallel_config

def busy(i):
    began = time.perf_counter()
    while time.perf_counter() < began + 0.001:
        pass
    return os.getpid(), began, i

with parallel_config("dask", n_jobs=2):
    for _ in range(6):
        results = Parallel()(delayed(busy)(i) for i in range(500))
        for slot in {result[0] for result in results}:
            order = [i for pid, _, i in sorted(results) if pid == slot]
            assert order == sorted(order), order
"""


def test_chunks_begin_in_the_order_of_their_tasks(program):
    """The last are the smallest, since slots are to end together: a large one must not come after these."""
    program.run_script(IN_ORDER)


STEALING = """
from distributed import Event

def is_looking(dask_scheduler):
    return dask_scheduler.periodic_callbacks["stealing"].is_running()

client = embedded_client()
first = client.submit(os.getpid, key="first")
first.result()
print(client.run_on_scheduler(is_looking))
address = list(client.scheduler_info()["workers"])[0]
held = [client.submit(lambda i: Event("go").wait(20), i, workers=[address], key=f"held-{i}") for i in range(2)]
while len(client.processing()[address]) < 2:
    time.sleep(0.01)
print(client.run_on_scheduler(is_looking))
Event("go", client=client).set()
print(client.gather(held), client.run_on_scheduler(is_looking))
"""


def test_dask_looks_for_tasks_to_move_only_while_one_waits_on_a_worker(program):
    assert program.run_script(STEALING) == "False\nTrue\n[True, True] False\n"


ALIVE = """
import logging
from joblib import Parallel, delayed, parallel_config

class Shown(logging.Handler):
    def emit(self, record):
        print(record.getMessage())

def interval_ms(dask_worker):
    return dask_worker.periodic_callbacks["heartbeat"].callback_time

logging.getLogger("jobfleet").addHandler(Shown())
client = embedded_client()
while set(client.run(interval_ms).values()) != {2000}:
    time.sleep(0.05)
with parallel_config("dask", worker_ttl=1):
    print(Parallel(batch_size=1)(delayed(time.sleep)(5) for _ in range(2)))
"""


def test_workers_seldom_say_that_they_live_and_are_not_taken_for_silent(program):
    assert program.run_script(ALIVE) == "[None, None]\n"


def test_the_slots_there_can_be_are_those_it_was_started_with(program):
    body = 'client = embedded_client()\nos.environ["LOKY_MAX_CPU_COUNT"] = "1"\nprint(embedded_slots(client).most)\n'
    assert program.run_script("from jobfleet._engine.embedded import embedded_slots\n" + body) == "2\n"


TIMEOUT = """
from joblib import Parallel, delayed, parallel_config

with parallel_config("dask", n_jobs=2):
    for return_as in ("list", "generator"):
        results = Parallel(timeout=1, return_as=return_as)(delayed(time.sleep)(0.05) for _ in range(120))
        print(set(results))
"""


def test_short_tasks_do_not_time_out_for_going_together(program):
    assert program.run_script(TIMEOUT) == "{None}\n{None}\n"
