"""The client prints and warns what its tasks did, as if they had run in it."""

import contextlib
import io
import pickle
import subprocess
import sys
import threading
import types
import warnings

import cloudpickle
import pytest

from jobfleet._filters import encode_filters
from jobfleet._observe.output import emit
from jobfleet._sink import current_sink
from jobfleet._worker.capture import Capture

SOURCE = """
import contextlib, warnings

def plain(text):
    warnings.warn(text)
    warnings.warn(text)

def reset(text):  # as scikit-learn does around every task
    with warnings.catch_warnings():
        entries = list(FILTERS)
        warnings.resetwarnings()
        for entry in entries:
            warnings.simplefilter(entry[0], entry[2], append=True)
        for _ in range(2):
            warnings.warn(text)

def before(text):
    warnings.warn(text)
    with warnings.catch_warnings():
        pass
    other(text)

def other(text):
    warnings.warn(text)
    print("printed", text)

def quiet(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn(text)
    print("printed", text)
"""
PROGRAMS = {
    "plain": ["plain", "plain"],
    "reset": ["reset", "reset"],
    "before": ["before", "before", "other"],
    "mixed": ["plain", "reset", "plain", "other", "other", "before", "quiet"],
}


def tasks_module(filters):
    """Return the tasks as a freshly imported module would have them."""
    module = types.ModuleType("some_tasks")
    exec(compile(SOURCE, "some_tasks.py", "exec"), module.__dict__)
    module.FILTERS = filters
    return module


def shown(run, action):
    """Return what is shown, in order, when `run` runs under this filter."""
    seen = io.StringIO()

    def show(message, category, filename, lineno, file=None, line=None):
        seen.write(f"{category.__name__} {message} {filename} {lineno}\n")

    with warnings.catch_warnings(), contextlib.redirect_stdout(seen):
        warnings.resetwarnings()
        warnings.simplefilter(action)
        warnings.showwarning = show
        run()
    return seen.getvalue()


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "not loaded"])
@pytest.mark.parametrize("action", ["default", "once", "module", "always", "ignore"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_shown_is_what_the_sequential_run_shows(program, action, loaded, monkeypatch):
    """The worker has its own copy of the module, as another process would."""
    calls = [(name, text) for text in ("a", "b") for name in PROGRAMS[program]]
    filters = [(action, None, Warning, None, 0)]

    def sequential():
        module = tasks_module(filters)
        for name, text in calls:
            getattr(module, name)(text)

    def fleet():
        module, sink = tasks_module(filters), current_sink()
        with Capture(encode_filters()) as capture:
            events = []
            for name, text in calls:
                getattr(module, name)(text)
                events.append(capture.take())
        for each in events:
            emit(each, sink)

    if loaded:
        monkeypatch.setitem(sys.modules, "some_tasks", types.ModuleType("some_tasks"))
    assert shown(fleet, action) == shown(sequential, action)


def warned(message, category=None):
    """Return the events of a task that warns."""
    with Capture((), cloudpickle.dumps) as capture:
        warnings.warn(message, category, stacklevel=1)
        return capture.take()


def test_pytest_and_records_see_the_warning():
    with pytest.warns(FutureWarning, match="soon"):
        emit(warned("soon", FutureWarning), current_sink())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        emit(warned("soon", FutureWarning), current_sink())
    (entry,) = record
    assert (entry.category, entry.filename) == (FutureWarning, __file__)


def test_module_filters_apply():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        emit(warned("x"), current_sink())
    assert record == []


class Odd(UserWarning):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = two


def test_the_warning_itself_arrives():
    class Mine(Odd):
        def __reduce__(self):
            return (type(self), (str(self), self.two))

    with pytest.warns(Odd) as record:
        emit(warned(Mine("x", [1])), current_sink())
    assert record[0].message.two == [1]


def test_a_warning_made_an_error_is_raised_after_the_rest_was_emitted(capsys):
    events = (*warned("first"), ("out", "text\n"), *warned("second"), ("out", "end\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="first"):
            emit(events, current_sink())
    assert capsys.readouterr().out == "text\nend\n"


def test_a_class_the_client_lacks_arrives_as_its_nearest_base(tmp_path):
    (tmp_path / "only_there.py").write_text(
        "class Base(DeprecationWarning): pass\n"
        "class There(Base): pass\n"
        "class NoPickle(Base):\n"
        "    def __reduce__(self): raise TypeError('no')\n"
    )
    code = """
import sys, pickle, warnings
sys.path.insert(0, sys.argv[1])
from only_there import There, NoPickle
from jobfleet._worker.capture import Capture
with Capture(()) as capture:
    warnings.warn("one", There)
    warnings.warn("two", NoPickle)
    events = capture.take()
sys.stdout.buffer.write(pickle.dumps(events))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True)
    with pytest.warns(DeprecationWarning, match="one|two") as record:
        emit(pickle.loads(done.stdout), current_sink())
    assert [(w.category, str(w.message)) for w in record] == [
        (DeprecationWarning, "one"),
        (DeprecationWarning, "two"),
    ]


def test_a_constructor_of_more_than_text_is_passed_over():
    name = (Odd.__module__, "Odd")
    event = ("warn", "x", b"junk", (name, ("builtins", "UserWarning")), "f.py", 1, "m", False)
    with pytest.warns(UserWarning, match="x") as record:
        emit([event], current_sink())
    assert record[0].category is UserWarning


class Closed(io.StringIO):
    def __init__(self):
        super().__init__()
        self.close()


class Raising:
    def write(self, text):
        raise RuntimeError("no")


@pytest.mark.parametrize("make", [lambda: None, Closed, Raising, object])
def test_broken_streams_lose_their_text_and_nothing_else(make, monkeypatch):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())

    def show(*fields):
        sys.stderr.write(warnings.formatwarning(*fields[:4]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        emit([("out", "x"), ("err", "y"), *warned("z"), *warned("z")], current_sink())


def test_text_a_stream_cannot_encode_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    emit([("out", "ä\n")], current_sink())
    assert raw.getvalue() == b"\\xe4\n"


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_an_inner_calls_output_belongs_to_the_outer_task(capsys):
    """It is emitted by another thread than the task's, as a call's driver is."""
    names = (("builtins", "UserWarning"), ("builtins", "Warning"))
    # Of a file that is another module here, as that of a client's `__main__` is.
    event = ("warn", "inner", None, names, __file__, 7, "__main__", False)
    inner = (("out", "inner\n"), event, ("err", "e\n"))
    with Capture(()) as outer:
        print("before")
        in_thread(emit, inner, current_sink())
        print("after")
        events = outer.take()
    assert [e[:2] for e in events] == [
        ("out", "before\ninner\n"),
        ("warn", "inner"),
        ("err", "e\n"),
        ("out", "after\n"),
    ]
    assert events[1] == inner[1]
    assert capsys.readouterr().out == ""


def test_an_outer_task_can_record_and_redirect_what_its_inner_calls_do():
    inner = (("out", "inner\n"), *warned("inner"))
    mine = io.StringIO()
    with Capture(()) as outer:
        with contextlib.redirect_stdout(mine), warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            in_thread(emit, inner, current_sink())
        assert outer.take() == ()
    assert mine.getvalue() == "inner\n"
    assert [str(w.message) for w in record] == ["inner"]
