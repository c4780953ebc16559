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


def test_the_slots_there_can_be_are_those_it_was_started_with(program):
    body = 'client = embedded_client()\nos.environ["LOKY_MAX_CPU_COUNT"] = "1"\nprint(embedded_slots(client).most)\n'
    assert program.run_script("from jobfleet._engine.embedded import embedded_slots\n" + body) == "2\n"
