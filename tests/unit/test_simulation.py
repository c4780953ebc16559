"""What the chunking makes of a call, in virtual time: no machine is so noisy that this changes."""

import contextlib
from collections import deque

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config, register_parallel_backend
from joblib.parallel import BACKENDS, ParallelBackendBase

from benchmarks.simulate.call import simulate
from benchmarks.simulate.cluster import ONE_MACHINE, Costs
from benchmarks.simulate.joblib_side import Dispatcher
from jobfleet._compat import dispatch_more, input_ended

pytestmark = pytest.mark.timeout(30)


def constant(n, each_s):
    return np.full(n, each_s)


def lognormal(n, mean_s):
    draws = np.random.default_rng(0).lognormal(0, 1.0, n)
    return draws * (mean_s / draws.mean())


def jump(first, then):
    return np.concatenate([constant(*first), constant(*then)])


@pytest.mark.parametrize(
    ("durations", "slots", "costs", "part"),
    [
        pytest.param(constant(2000, 0.01), 2, ONE_MACHINE, 0.95, id="short"),
        pytest.param(constant(400, 0.05), 2, ONE_MACHINE, 0.95, id="medium"),
        pytest.param(constant(10_000, 0.001), 10, Costs(round_trip_s=0.001), 0.95, id="tiny tasks"),
        pytest.param(constant(100_000, 0.001), 100, Costs(), 0.8, id="as many tasks as the client can make"),
        pytest.param(constant(400_000, 0.001), 100, Costs(), 0.9, id="for some time"),
        pytest.param(constant(100_000, 0.1), 1000, Costs(), 0.9, id="a thousand slots"),
        pytest.param(constant(10_000, 0.1), 100, Costs(), 0.95, id="many slots"),
        pytest.param(constant(1000, 0.1), 10, Costs(round_trip_s=0.05), 0.95, id="far away"),
        pytest.param(lognormal(3000, 0.02), 10, Costs(), 0.9, id="ragged"),
        pytest.param(jump((1000, 0.0002), (1000, 0.2)), 10, Costs(), 0.9, id="longer and longer"),
        pytest.param(jump((1000, 0.2), (1000, 0.0002)), 10, Costs(), 0.9, id="shorter and shorter"),
    ],
)
def test_slots_are_used_for_a_large_part_of_what_the_work_allows(durations, slots, costs, part):
    outcome = simulate(durations.tolist(), slots, costs)
    assert outcome.used >= part * min(1.0, outcome.possible)


def test_no_call_is_better_than_the_work_allows():
    outcome = simulate([0.1] * 100, 10, Costs(round_trip_s=0.05))
    assert outcome.wall_s >= 1.0 + 0.05
    assert sum(outcome.course) / 10 == pytest.approx(outcome.used, abs=0.01)


@pytest.mark.parametrize("timeout_s", [0.5, 1.0])
@pytest.mark.parametrize(("slots", "costs"), [(2, ONE_MACHINE), (10, Costs()), (100, Costs())])
def test_results_come_in_time_for_a_timeout(slots, costs, timeout_s):
    tasks = constant(1000 * slots, 0.01).tolist()
    assert simulate(tasks, slots, costs, timeout_s).longest_wait_s < timeout_s / 2
    assert simulate(tasks, slots, costs).longest_wait_s > timeout_s / 4, "or else there is nothing to see to"


class Recorder(ParallelBackendBase):
    """Run batches in the caller's thread, and note their sizes in the order of dispatch."""

    supports_retrieve_callback = True
    sizes: list
    answer = 1
    smaller_at_end = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.waiting = deque()

    def configure(self, n_jobs=1, parallel=None, **kwargs):
        self.parallel = parallel
        return n_jobs

    def effective_n_jobs(self, n_jobs):
        return n_jobs

    def compute_batch_size(self):
        return self.answer

    def submit(self, func, callback=None):
        self.sizes.append(len(func))
        self.waiting.append((func, callback))

    def retrieve_result_callback(self, out):
        return out

    @contextlib.contextmanager
    def retrieval_context(self):
        while not input_ended(self.parallel):
            dispatch_more(self.parallel, self.smaller_at_end)
        while self.waiting:
            batch, callback = self.waiting.popleft()
            callback(batch())
        yield


@pytest.fixture
def recorder():
    register_parallel_backend("recorder", Recorder)
    yield Recorder
    del BACKENDS["recorder"]


@pytest.mark.parametrize("n_tasks", [1, 5, 40, 1000])
@pytest.mark.parametrize("answer", [1, 3, 64])
@pytest.mark.parametrize("smaller_at_end", [True, False])
def test_joblib_cuts_batches_as_the_simulation_has_it(recorder, n_tasks, answer, smaller_at_end):
    recorder.sizes, recorder.answer, recorder.smaller_at_end = [], answer, smaller_at_end
    with parallel_config("recorder", n_jobs=3):
        assert Parallel()(delayed(abs)(i) for i in range(n_tasks)) == list(range(n_tasks))
    dispatcher = Dispatcher(n_tasks, 3, lambda: answer)
    later = iter(lambda: dispatcher.next(smaller_at_end), None)
    assert [*dispatcher.first(), *later] == recorder.sizes
