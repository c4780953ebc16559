"""The plan of faults, row by row: what comes of a call that is struck, how often its tasks run, and what it leaves."""

import re

import pytest

from tests.faults.plan import PLAN, as_expected, row_id
from tests.faults.scene import perform, perform_apart
from tests.netns import Unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def check(row, report):
    """Say that a report is as its row has it."""
    assert not report.struck, report
    wrong = {i: text for i, (kinds, text) in report.failures.items() if row.ends not in kinds.split() or not row.ends}
    assert not wrong, report
    assert set(report.failures) == (set(row.fails) if row.fails or not row.ends else {-1}), report
    for i, (_, text) in report.failures.items():
        assert re.search(row.words, text), text
        assert not row.fails or f"call {i}, " in text, text
    if not row.ends or row.fails:
        assert as_expected(row, report.results), report
    ran = report.ran.copy()
    held = row.work.victim[1] if row.at is not row.at.LAST else max(ran)
    assert ran.pop(held, 0) <= row.most, report.ran
    assert sum(ran.values()) - len(ran) <= row.others, report.ran
    assert not report.next_call
    assert not report.left
    assert report.seconds < row.deadline_s


def perform_or_skip(row, directory):
    try:
        # A process whose network is cut lives on another one from then on.
        return perform_apart(row_id(row), directory) if row.cuts else perform(row, directory)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("row", PLAN, ids=row_id)
def test_plan(row, tmp_path):
    check(row, perform_or_skip(row, tmp_path))
