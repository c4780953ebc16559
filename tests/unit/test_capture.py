"""What a task prints and warns is captured, per task and thread, and nothing else is."""

import asyncio
import contextlib
import io
import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest

from jobfleet._filters import encode_filters
from jobfleet._sink import current_sink
from jobfleet._worker.capture import Capture

DEFAULT = (("default", None, (("builtins", "Warning"),), None, 0),)
ERROR = (("error", None, (("builtins", "Warning"),), None, 0),)
IGNORE = (("ignore", None, (("builtins", "Warning"),), None, 0),)


def captured(task, filters=DEFAULT):
    with Capture(filters) as capture:
        task()
        return capture.take()


def texts(events):
    """The events' kinds and texts."""
    return [event[:2] for event in events]


def warn_here(text="careful", category=UserWarning):
    warnings.warn(text, category, stacklevel=1)


# Streams


def test_events_are_in_order_and_adjacent_writes_are_one():
    def task():
        print("a", "b")
        print("c")
        print("d", file=sys.stderr)
        warn_here()
        warn_here("again")
        print("e")

    assert texts(captured(task)) == [
        ("out", "a b\nc\n"),
        ("err", "d\n"),
        ("warn", "careful"),
        ("warn", "again"),
        ("out", "e\n"),
    ]


@pytest.mark.parametrize("filters", [None, (), DEFAULT])
def test_afterwards_the_process_is_as_it_was(filters):
    def state():
        return (sys.stdout, sys.stderr, warnings.filters, warnings.showwarning)

    before, contents = state(), list(warnings.filters)

    def chunk():
        with Capture(filters) as capture:
            print("x")
            assert state() != before
            with Capture(ERROR):
                pass
            capture.take()
            raise KeyError

    with pytest.raises(KeyError):
        chunk()
    assert all(a is b for a, b in zip(state(), before, strict=True))
    assert warnings.filters == contents


def test_each_task_has_its_own_events(capsys):
    with Capture(DEFAULT) as capture:
        print("one")
        first = capture.take()
        second = capture.take()
        print("three")
        third = capture.take()
    print("after")
    assert (texts(first), second, texts(third)) == ([("out", "one\n")], (), [("out", "three\n")])
    assert capsys.readouterr().out == "after\n"


def test_threads_do_not_see_each_others_events():
    barrier = threading.Barrier(4, timeout=20)

    def chunk(n):
        with Capture(DEFAULT) as capture:
            for step in range(20):
                barrier.wait()
                print(n, step)
                warn_here(f"{n} {step}")
            barrier.wait()
            return texts(capture.take())

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(chunk, range(4)))
    for n, events in enumerate(results):
        expected = [(("out", f"{n} {s}\n"), ("warn", f"{n} {s}")) for s in range(20)]
        assert events == [event for pair in expected for event in pair]


def test_a_task_inside_a_task_has_its_own_events():
    def task():
        print("before")
        inner.append(captured(lambda: print("inner")))
        print("after")

    inner = []
    assert texts(captured(task)) == [("out", "before\nafter\n")]
    assert texts(inner[0]) == [("out", "inner\n")]


def test_a_tasks_redirection_takes_its_text():
    def task():
        with contextlib.redirect_stdout(mine):
            print("mine")
        print("theirs")

    mine = io.StringIO()
    assert texts(captured(task)) == [("out", "theirs\n")]
    assert mine.getvalue() == "mine\n"


def test_a_redirection_around_a_whole_chunk_is_kept(capsys):
    mine = io.StringIO()
    with contextlib.redirect_stdout(mine):
        assert texts(captured(lambda: print("task"))) == [("out", "task\n")]
        print("mine")
    print("end")
    assert (mine.getvalue(), capsys.readouterr().out) == ("mine\n", "end\n")


def test_a_redirection_that_began_in_a_chunk_and_ends_after_it(capsys):
    """As by another thread of the process; the stand-in it puts back works, and goes."""
    real = sys.stdout
    mine = io.StringIO()
    redirection = contextlib.redirect_stdout(mine)
    with Capture(None):
        redirection.__enter__()
    print("mine")
    redirection.__exit__(None, None, None)
    print("real")
    assert (mine.getvalue(), capsys.readouterr().out) == ("mine\n", "real\n")
    assert texts(captured(lambda: print("task"))) == [("out", "task\n")]
    assert sys.stdout is real


def test_a_stream_wrapped_around_the_stand_in_does_not_run_in_circles(capsys):
    class Tee:
        def __init__(self, under):
            self.under = under

        def write(self, text):
            self.under.write(text.upper())

    real = sys.stdout
    with Capture(None):
        sys.stdout = Tee(sys.stdout)
    try:
        print("outside")
        assert texts(captured(lambda: print("task"), None)) == [("out", "task\n")]
    finally:
        sys.stdout = real
    assert capsys.readouterr().out == "OUTSIDE\n"


def test_what_a_task_leaves_behind_does_not_reach_the_next():
    with Capture(DEFAULT) as capture:
        sys.stdout = io.StringIO()
        warnings.showwarning = print
        warnings.simplefilter("ignore")
        capture.take()
        print("seen")
        warn_here()
        assert texts(capture.take()) == [("out", "seen\n"), ("warn", "careful")]
        warnings.filters = []
        capture.take()
        warnings.resetwarnings()
        capture.take()
        warn_here()
        assert texts(capture.take()) == [("warn", "careful")]


def test_bytes_are_captured_as_text():
    def task():
        print("ä", end="")
        sys.stdout.buffer.write("ö".encode()[:1])
        sys.stdout.buffer.write("ö".encode()[1:])
        sys.stdout.buffer.write(memoryview(b"\xff"))
        print("ü", end="")
        sys.stdout.buffer.write(b"\xc3")
        print("cut", end="")
        sys.stdout.buffer.write(b"\xc3")

    assert texts(captured(task)) == [("out", "äö\ufffdü\ufffdcut\ufffd")]


def test_the_stand_in_is_a_text_stream():
    def task():
        with pytest.raises(TypeError, match="must be str, not bytes"):
            sys.stdout.write(b"x")
        assert sys.stdout.write("abc") == 3
        sys.stdout.writelines(["d", "e"])
        sys.stdout.flush()
        sys.stdout.close()
        sys.stdout.reconfigure(line_buffering=True)
        assert not sys.stdout.closed
        assert not sys.stdout.isatty()
        assert not sys.stdout.buffer.isatty()
        assert sys.stdout.writable()
        assert not sys.stdout.readable()
        assert isinstance(sys.stdout, io.TextIOBase)
        assert sys.stdout.encoding.lower().replace("-", "") == "utf8"
        assert sys.stdout.errors
        assert cloudpickle.loads(cloudpickle.dumps(sys.stdout)) is sys.stdout

    assert texts(captured(task)) == [("out", "abcde")]


def test_the_real_file_descriptor_is_told(capfd):
    assert captured(lambda: numbers.append(sys.stdout.fileno())) == ()
    assert numbers == [sys.stdout.fileno()]


numbers = []


def test_a_process_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert texts(captured(lambda: print("x"))) == [("out", "x\n")]
    with Capture(DEFAULT), ThreadPoolExecutor(1) as pool:
        pool.submit(print, "lost", flush=True).result(20)


def test_a_logging_handler_made_in_one_chunk_serves_the_next():
    logger = logging.Logger("tasks")
    captured(lambda: logger.addHandler(logging.StreamHandler()))
    assert texts(captured(lambda: logger.warning("oh"))) == [("err", "oh\n")]


def test_threads_of_a_task_print_to_the_worker_unless_they_have_its_context(capsys):
    def task():
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        asyncio.run(asyncio.to_thread(print, "to_thread"))

        def under(sink):
            with sink.entered():
                print("entered")

        thread = threading.Thread(target=under, args=(current_sink(),))
        thread.start()
        thread.join()

    inherits = getattr(sys.flags, "thread_inherit_context", False)
    plain = "thread\n" if inherits else ""
    assert texts(captured(task)) == [("out", plain + "to_thread\nentered\n")]
    assert capsys.readouterr().out == ("" if inherits else "thread\n")


def test_a_context_that_outlives_its_chunk_prints_to_the_process(capsys):
    with Capture(DEFAULT):
        sink = current_sink()
    sink.run(print, "late")
    with Capture(DEFAULT) as other:
        sink.run(print, "later")
        assert other.take() == ()
    assert capsys.readouterr().out == "late\nlater\n"


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks")
def test_a_forked_child_prints_to_the_workers_stream():
    code = """
import os
from jobfleet._worker.capture import Capture
with Capture(()) as capture:
    print("task")
    if not (pid := os.fork()):
        print("child", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    events = capture.take()
print(events)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "child\n(('out', 'task\\n'),)\n"


# Warnings


@pytest.mark.parametrize("action", ["default", "module", "once", "always", "all"])
def test_a_warning_is_delivered_every_time(action):
    """Also one that this process has shown before: the client decides what is new."""
    filters = ((action, *DEFAULT[0][1:]),)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        warn_here()
        for _ in range(2):
            with Capture(filters) as capture:
                warn_here()
                warn_here()
                assert len(capture.take()) == 2


def test_a_warning_no_filter_matches_is_delivered_every_time():
    with Capture(()) as capture:
        warn_here()
        warn_here()
        assert len(capture.take()) == 2


def test_an_error_is_raised_in_the_task():
    with pytest.raises(UserWarning, match="careful"):
        captured(warn_here, ERROR)


def test_an_ignored_warning_is_not_sent():
    assert captured(warn_here, IGNORE) == ()


def test_a_task_that_records_its_warnings_keeps_them():
    def task():
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            warn_here("mine")
        assert [str(w.message) for w in record] == ["mine"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warn_here("ignored")
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("default", append=True)
            warn_here("theirs")
        warn_here("also theirs")

    assert texts(captured(task)) == [("warn", "theirs"), ("warn", "also theirs")]


def test_a_warning_says_where_it_comes_from():
    def outer():
        warnings.warn("up", stacklevel=2)

    namespace = {"__name__": "elsewhere", "warnings": warnings}
    source = "def sub():\n  warnings.warn('of the line that calls', stacklevel=2)"
    exec(compile(source, "/no/such/file.py", "exec"), namespace)
    main = {"__name__": "main", "sub": namespace["sub"]}

    def task():
        exec(compile("\n\nwarnings.warn('x')", "/no/such/file.py", "exec"), namespace)
        exec(compile("\n\n\nsub()", "/no/such/file.py", "exec"), main)
        exec(compile("outer()", "/other/file.py", "exec"), {"outer": outer, "__name__": "o"})
        warnings.warn_explicit("e", UserWarning, threading.__file__, 7)
        warnings.warn_explicit("e", UserWarning, "/no/where.py", 8)
        warnings.warn("top", stacklevel=10_000)

    places = [event[4:7] for event in captured(task)]
    assert places[:5] == [
        ("/no/such/file.py", 3, "elsewhere"),
        ("/no/such/file.py", 4, "main"),
        ("/other/file.py", 1, "o"),
        (threading.__file__, 7, "threading"),
        ("/no/where.py", 8, "/no/where"),
    ]
    assert len(places) == 6


def test_a_warning_from_outside_of_tasks_is_shown_as_before():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        with Capture(DEFAULT) as capture:
            thread = threading.Thread(target=warn_here, args=("outside",))
            thread.start()
            thread.join()
            if not getattr(sys.flags, "thread_inherit_context", False):
                assert capture.take() == ()
        warn_here("after")
    assert [str(w.message) for w in record][-1] == "after"


def test_without_filters_warnings_are_left_to_the_process():
    with pytest.warns(UserWarning, match="careful"):
        assert captured(warn_here, None) == ()


def test_clients_with_different_filters_do_not_fail_or_silence_each_other():
    entered, done = threading.Event(), threading.Event()

    def other():
        with Capture(ERROR):
            entered.set()
            done.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(20)
    try:
        assert texts(captured(warn_here, IGNORE)) == [("warn", "careful")]
        with pytest.raises(UserWarning):
            captured(warn_here, ERROR)
    finally:
        done.set()
        thread.join()


def test_an_inner_call_does_not_change_the_filters_of_its_outer_task():
    """It sends the filters in force in the task, which are the client's as installed."""

    def task():
        encoded.append(encode_filters())
        with pytest.raises(UserWarning):
            captured(warn_here, encoded[0])
        assert captured(lambda: warn_here("", DeprecationWarning), encoded[0]) == ()

    encoded = []
    deprecated = ("ignore", None, (("builtins", "DeprecationWarning"),), None, 0)
    captured(task, (deprecated, *ERROR))


def test_a_warning_that_does_not_pickle_is_sent_without_itself():
    class Local(RuntimeWarning):
        def __reduce__(self):
            raise TypeError("no")

    (event,) = captured(lambda: warnings.warn(Local("text"), stacklevel=1))
    kind, text, blob, names, *_ = event
    assert (kind, text, blob) == ("warn", "text", None)
    assert names[1:] == (("builtins", "RuntimeWarning"), ("builtins", "Warning"))
