"""With `speculation` the last tasks run a second time where they take long; the first answer counts."""

from collections import Counter

import pytest
from joblib import Parallel, delayed

from tests.faults.conftest import assert_nothing_is_left
from tests.faults.tasks import square_at_second_try
from tests.witness import count, names, wait_until

N_TASKS = 8
SLOW = 5


@pytest.mark.engines("scripted", "dask-processes")
@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_a_task_that_hangs_once_does_not_hold_up_the_call(backend, tmp_path, return_as):
    with backend(speculation=True):
        tasks = [delayed(square_at_second_try)(tmp_path, SLOW, i) for i in range(N_TASKS)]
        assert list(Parallel(batch_size=1, return_as=return_as)(tasks)) == [i * i for i in range(N_TASKS)]
    tries = {i: count(tmp_path / "tries" / str(i)) for i in range(N_TASKS)}
    assert tries.pop(SLOW) == 2
    assert set(tries.values()) <= {1, 2}
    wait_until(lambda: Counter(names(tmp_path / "ended"))[str(SLOW)] == 2, "the first try was interrupted")
    if backend.client is not None:
        assert_nothing_is_left(backend.client)
