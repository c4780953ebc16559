"""Errors travel between processes unchanged, and the tree in the docstring is the one that exists."""

import copy
import copyreg
import inspect
import pickle
import re

import cloudpickle
import pytest
import tblib.pickling_support

from jobfleet import errors
from jobfleet.errors import CallError, JobfleetError, RemoteTraceback

pytestmark = pytest.mark.timeout(10)

CLASSES = [getattr(errors, name) for name in errors.__all__]


EXAMPLES = [(cls, args) for cls in CLASSES for args in [("what happened",), ("",)]]
EXAMPLES += [(cls, ("what happened", 3, "f(1)")) for cls in CLASSES if issubclass(cls, CallError)]


@pytest.fixture(params=["as defined", "by tblib"])
def _pickled(request):
    """Importing distributed has tblib pickle, in its own way, all exceptions that exist at that moment."""
    before = copyreg.dispatch_table.copy()
    if request.param == "by tblib":
        tblib.pickling_support.install(*CLASSES)
    else:
        for cls in CLASSES:
            copyreg.dispatch_table.pop(cls, None)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


def drawn_tree():
    """Give each class that the docstring draws, with the names of its bases there."""
    bases, path = {}, []
    for line in errors.__doc__.split("```")[1].strip().splitlines():
        drawn = re.fullmatch(r"([ │├└─]*)(\w+)(?: \((\w+)\))?(?:  +\S.*)?", line)
        assert drawn, line
        depth = len(drawn[1]) // 4
        path[depth:] = [drawn[2]]
        bases[drawn[2]] = {*path[max(0, depth - 1) : depth], *([drawn[3]] if drawn[3] else [])}
    return bases


def test_the_tree_that_is_drawn_is_the_one_that_exists():
    exist = {
        cls.__name__: {base.__name__ for base in cls.__bases__ if base is not Exception}
        for cls in CLASSES
        if issubclass(cls, JobfleetError)
    }
    assert drawn_tree() == exist


def test_every_class_is_exported():
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == defined
    assert not issubclass(RemoteTraceback, JobfleetError), "it is a cause, nothing to catch"


by_example = pytest.mark.parametrize(("cls", "args"), EXAMPLES, ids=str)


@by_example
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
@pytest.mark.usefixtures("_pickled")
def test_comes_back_equal(cls, args, protocol, dumps):
    error = cls(*args)
    again = pickle.loads(dumps(error, protocol=protocol))
    assert type(again) is type(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert repr(again) == repr(error)


@by_example
@pytest.mark.usefixtures("_pickled")
def test_notes_and_attributes_come_along(cls, args):
    error = cls(*args)
    error.add_note("where it was")
    error.more = [1]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert again.__notes__ == ["where it was"]
        assert again.more == [1]


def test_a_call_error_says_which_call_and_shows_the_message_alone():
    error = errors.SerializationError("the message", 3, "f(1)")
    assert (error.index, error.call, str(error)) == (3, "f(1)", "the message")
    error = CallError("the message")
    assert (error.index, error.call) == (None, None)


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        ("OptionTypeError", TypeError),
        ("OptionValueError", ValueError),
        ("ClientStateError", ValueError),
        ("NoWorkersError", TimeoutError),
        ("NestingError", RecursionError),
        ("SerializationError", pickle.PicklingError),
    ],
)
def test_can_be_caught_as_what_python_calls_it(cls, also):
    with pytest.raises(also, match="message"):
        raise getattr(errors, cls)("message")


def test_a_remote_traceback_is_set_apart_as_a_cause():
    error = RemoteTraceback("Traceback (most recent call last):\n  ...")
    assert str(error) == '\n"""\nTraceback (most recent call last):\n  ..."""'
