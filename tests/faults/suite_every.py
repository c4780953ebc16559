"""Everything that happens to a worker, at every point of a call, however its results are taken: `make test-faults`.

Not among the tests of every change, since it takes ten minutes: `test_plan.py` has a choice of these rows.
"""

import pytest

from tests.faults.plan import EVERY, row_id
from tests.faults.test_plan import check, perform_or_skip

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("row", EVERY, ids=row_id)
def test_every(row, tmp_path):
    check(row, perform_or_skip(row, tmp_path))
