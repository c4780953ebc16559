"""What a task prints and warns reaches its client, in order, by the time its result is delivered."""

import contextlib
import io
import sys
import warnings

import pytest
from joblib import Parallel, delayed


def say(index, lines=3):
    for line in range(lines):
        print(f"task {index} line {line}")
        print(f"task {index} problem {line}", file=sys.stderr)
    return index


def complain(index, category=UserWarning):
    warnings.warn(f"complaint {index}", category, stacklevel=1)
    return index


class OwnWarning(UserWarning):
    pass


class Both:
    """Takes what is written to either stream, keeping the order of the two together."""

    def __init__(self):
        self.text = ""

    def stream(self):
        both = self

        class Stream(io.TextIOBase):
            def write(self, text):
                both.text += text
                return len(text)

        return Stream()


@contextlib.contextmanager
def both_streams():
    both = Both()
    with contextlib.redirect_stdout(both.stream()), contextlib.redirect_stderr(both.stream()):
        yield both


def lines_of(text, index):
    return [line for line in text.splitlines() if line.startswith(f"task {index} ")]


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_prints_arrive_on_their_stream_once_and_in_order(backend, capsys, batch_size):
    with backend():
        Parallel(batch_size=batch_size)(delayed(say)(i) for i in range(8))
    captured = capsys.readouterr()
    for i in range(8):
        assert lines_of(captured.out, i) == [f"task {i} line {k}" for k in range(3)]
        assert lines_of(captured.err, i) == [f"task {i} problem {k}" for k in range(3)]
    assert len(captured.out.splitlines()) == 24
    assert len(captured.err.splitlines()) == 24


def test_the_two_streams_keep_their_order_within_a_task(backend):
    with both_streams() as both, backend():
        Parallel()(delayed(say)(i) for i in range(4))
    for i in range(4):
        expected = [f"task {i} {word} {k}" for k in range(3) for word in ("line", "problem")]
        assert lines_of(both.text, i) == expected


def test_lines_of_different_tasks_are_not_mixed_inside_a_line(backend, capsys):
    def pieces(index):
        for k in range(5):
            print(f"task {index}", end=" ")
            print(f"piece {k}")

    with backend():
        Parallel()(delayed(pieces)(i) for i in range(8))
    out = capsys.readouterr().out
    assert sorted(out.splitlines()) == sorted(f"task {i} piece {k}" for i in range(8) for k in range(5))


@pytest.mark.parametrize("form", ["generator", "generator_unordered"])
def test_output_is_there_when_the_result_is(backend, capsys, form):
    seen = ""
    with backend():
        for result in Parallel(n_jobs=2, return_as=form, batch_size=1)(delayed(say)(i) for i in range(6)):
            seen += capsys.readouterr().out
            assert lines_of(seen, result) == [f"task {result} line {k}" for k in range(3)]


def test_text_of_any_kind(backend, capsys):
    texts = ["é ∑ 🚀", "no newline", "", "tab\tand\r\n", "x" * 200_000]

    def write(index):
        sys.stdout.write(texts[index])
        sys.stdout.flush()
        sys.stdout.write(f"<{index}>\n")

    with backend():
        Parallel()(delayed(write)(i) for i in range(len(texts)))
    out = capsys.readouterr().out
    for index, text in enumerate(texts):
        assert f"{text}<{index}>\n" in out.replace("\r\n", "\r\n")


def test_output_of_a_failing_task_is_shown(backend, capsys):
    def last_words(index):
        print(f"task {index} line 0")
        raise RuntimeError("after the words")

    with backend(), pytest.raises(RuntimeError, match="after the words"):
        Parallel()(delayed(last_words)(i) for i in range(1))
    assert "task 0 line 0" in capsys.readouterr().out.splitlines()


def test_output_of_the_caller_is_untouched(backend, capsys):
    with backend():
        results = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(i) for i in range(20))
        for result in results:
            print("mine", result)
    assert capsys.readouterr().out.splitlines() == [f"mine {i}" for i in range(20)]


def test_output_of_nested_tasks(backend, capsys):
    def outer(index):
        Parallel(n_jobs=2)(delayed(say)(10 * index + k, 1) for k in range(2))

    with backend():
        Parallel(n_jobs=2)(delayed(outer)(i) for i in range(1, 3))
    assert sorted(capsys.readouterr().out.splitlines()) == [f"task {n} line 0" for n in (10, 11, 20, 21)]


def test_warnings_are_warned_in_the_client(backend):
    with backend(), pytest.warns(UserWarning, match="complaint") as caught:
        assert Parallel()(delayed(complain)(i) for i in range(4)) == list(range(4))
    messages = sorted(str(w.message) for w in caught if "complaint" in str(w.message))
    assert messages == [f"complaint {i}" for i in range(4)]
    for w in caught:
        if "complaint" in str(w.message):
            assert w.filename == __file__
            assert w.category is UserWarning


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, RuntimeWarning, OwnWarning])
def test_the_category_is_kept(backend, category):
    with backend(), pytest.warns(category, match="complaint"):
        Parallel()(delayed(complain)(i, category) for i in range(2))


def test_a_warning_is_there_when_the_result_is(backend):
    with backend(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for result in Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(complain)(i) for i in range(4)):
            assert f"complaint {result}" in {str(w.message) for w in caught}


def test_ignored_warnings_are_ignored(backend):
    with backend(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="complaint")
        Parallel()(delayed(complain)(i) for i in range(4))
    assert [str(w.message) for w in caught if "complaint" in str(w.message)] == []


def test_warnings_made_errors_are_errors(backend):
    with backend(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="complaint")
        with pytest.raises(UserWarning, match="complaint"):
            Parallel()(delayed(complain)(i) for i in range(4))
    with backend():
        assert Parallel()(delayed(abs)(i) for i in range(3)) == [0, 1, 2]


def test_a_task_that_catches_its_warnings_keeps_them(backend):
    def quiet():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("kept", stacklevel=1)
        return [str(w.message) for w in caught]

    with backend(), warnings.catch_warnings(record=True) as outside:
        warnings.simplefilter("always")
        assert Parallel(n_jobs=2)(delayed(quiet)() for _ in range(2)) == [["kept"]] * 2
    assert [str(w.message) for w in outside if "kept" in str(w.message)] == []


def test_a_task_that_redirects_its_output_keeps_it(backend, capsys):
    def quiet(index):
        buffer = io.StringIO()
        with contextlib.redirect_stdout(buffer):
            print("kept", index)
        return buffer.getvalue()

    with backend():
        assert Parallel(n_jobs=2, batch_size=1)(delayed(quiet)(i) for i in range(1)) == ["kept 0\n"]
    assert capsys.readouterr().out == ""


def test_streams_are_as_before_afterwards(backend):
    out, err, show = sys.stdout, sys.stderr, warnings.showwarning
    filters = list(warnings.filters)
    with backend():
        Parallel()(delayed(say)(i) for i in range(4))
    assert (sys.stdout, sys.stderr, warnings.showwarning) == (out, err, show)
    assert warnings.filters == filters
