"""Settings are checked when they are given, and each error says what would be accepted."""

import dataclasses
import pickle
import re

import dask.config
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from jobfleet.errors import OptionTypeError, OptionValueError
from jobfleet.options import DEFAULTS, Options

pytestmark = pytest.mark.timeout(10)

NAMES = sorted(field.name for field in dataclasses.fields(Options))


def test_without_keywords_everything_has_its_default():
    options = Options.from_keywords({})
    assert options == Options()
    assert options.client is options.address is options.engine is None
    assert (options.scatter, options.retries, options.initargs) == ((), 0, ())
    assert options.wait_for_workers_timeout == DEFAULTS["wait-for-workers-timeout"]
    assert options.max_nesting_depth == DEFAULTS["max-nesting-depth"]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().retries = 1
    assert not hasattr(Options(), "__dict__")


# Names


@pytest.mark.parametrize("give", [Options.from_keywords, Options().merged])
@pytest.mark.parametrize(("name", "hint"), [("adress", "'address'"), ("retrys", "'retries'"), ("xyzzy", None)])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(give, name, hint):
    with pytest.raises(OptionTypeError) as error:
        give({name: 1})
    assert f"no option {name!r}" in str(error.value)
    for known in NAMES:
        assert known in str(error.value)
    assert ("Did you mean" in str(error.value)) == (hint is not None)
    assert hint is None or f"Did you mean {hint}?" in str(error.value)


def test_every_option_is_documented():
    for name in NAMES:
        assert re.search(rf"\b{name}\b", Options.__doc__), name


@pytest.mark.parametrize(
    "keywords",
    [
        {"client": object()},
        {"address": "tcp://h:1"},
        {"scheduler_host": "tcp://h:1"},
        {"scatter": [1]},
        {"wait_for_workers_timeout": 1},
        {"pure": True, "loop": None},
        {"resources": {"GPU": 1}, "priority": 2, "workers": ["a"], "allow_other_workers": True},
        {"retries": 2},
        {"context": "loky", "temp_folder": "/tmp", "idle_worker_timeout": 3},
    ],
)
def test_what_joblibs_own_backends_take_is_accepted(keywords):
    options = Options.from_keywords(keywords)
    assert Options().merged(keywords) == options


# Values


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("address", 5, "str"),
        ("scheduler_host", b"tcp://h:1", "str"),
        ("scheduler_file", 5, "str"),
        ("initializer", 5, "Callable"),
        ("resources", ["GPU"], "Mapping"),
        ("wait_for_workers_timeout", "10", "number"),
        ("wait_for_workers_timeout", None, "number"),
        ("wait_for_workers_timeout", True, "number"),
        ("priority", "high", "number"),
        ("retries", 1.5, "integer"),
        ("retries", True, "integer"),
        ("max_nesting_depth", "3", "integer"),
        ("initargs", 5, "tuple"),
        ("initargs", None, "tuple"),
        ("initargs", "ab", "tuple"),
        ("workers", 5, "worker"),
        ("allow_other_workers", "no", "bool"),
        ("return_exceptions", 1, "bool"),
        ("retry_on", "OSError", "class of exceptions"),
        ("retry_on", (), "class of exceptions"),
        ("retry_on", (OSError, int), "class of exceptions"),
        ("worker_ttl", "30", "number"),
        ("worker_ttl", True, "number"),
    ],
)
def test_a_wrong_type_is_an_error_that_says_what_is_accepted(name, value, accepted):
    with pytest.raises(OptionTypeError) as error:
        Options.from_keywords({name: value})
    assert name in str(error.value)
    assert accepted in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wait_for_workers_timeout", -1),
        ("wait_for_workers_timeout", float("nan")),
        ("retries", -1),
        ("max_nesting_depth", 0),
        ("resources", {"GPU": -1}),
        ("worker_ttl", 0),
        ("worker_ttl", float("nan")),
    ],
)
def test_a_value_that_cannot_be_is_an_error(name, value):
    with pytest.raises(OptionValueError, match=name):
        Options.from_keywords({name: value})


def test_numbers_of_any_kind_are_numbers():
    Options(wait_for_workers_timeout=np.float32(1), priority=np.int64(-5), resources={"GPU": np.float64(0.5)})


@pytest.mark.parametrize("one", ["client", "address", "scheduler_host", "scheduler_file", "engine"])
@pytest.mark.parametrize("other", ["client", "address", "scheduler_host", "scheduler_file", "engine"])
def test_only_one_may_choose_the_cluster(one, other):
    if one == other:
        Options.from_keywords({one: "x"})
        return
    with pytest.raises(OptionValueError, match=f"({one} and {other}|{other} and {one}) each choose"):
        Options.from_keywords({one: "x", other: "x"})
    with pytest.raises(OptionValueError, match="each choose"):
        Options.from_keywords({one: "x"}).merged({other: "x"})


@pytest.mark.parametrize(("given", "kept"), [("tcp://w:1", ["tcp://w:1"]), (["a", "b"], ["a", "b"]), (None, None)])
def test_one_worker_is_a_list_of_one(given, kept):
    assert Options(workers=given).workers == kept


# Objects to send ahead


@pytest.mark.parametrize(
    "value", [[1], (1,), {1}, iter([1]), {"k": 1}.values(), np.array([[1]], dtype=object)[0].tolist()]
)
def test_scatter_is_an_iterable_of_objects(value):
    assert Options(scatter=value).scatter == (1,)


def test_scatter_takes_objects_of_any_kind():
    objects = [np.eye(2), pd.DataFrame({"a": [1]}), [1], {"k": 1}, SVC(), None]
    assert list(Options(scatter=objects).scatter) == objects
    assert Options(scatter=None).scatter == ()
    assert Options(scatter=[]).scatter == ()


@pytest.mark.parametrize(
    "value",
    [
        np.eye(2),
        pd.DataFrame({"a": [1]}),
        pd.Series([1]),
        "text",
        b"bytes",
        bytearray(b"x"),
        {"k": np.eye(2)},
        SVC(),
        5,
        scipy.sparse.csr_matrix(np.eye(2)),
        scipy.sparse.csr_array(np.eye(2)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_scatter_of_one_object_is_an_error_that_says_what_is_accepted(value):
    with pytest.raises(OptionTypeError) as error:
        Options(scatter=value)
    assert type(value).__name__ in str(error.value)
    assert "scatter=[X, y]" in str(error.value)


def test_a_fitted_forest_is_one_object():
    forest = RandomForestClassifier(n_estimators=2).fit([[0], [1]], [0, 1])
    assert Options(scatter=[forest]).scatter == (forest,)


# Dask's configuration


def test_dasks_configuration_gives_the_defaults_and_keywords_win():
    with dask.config.set({"jobfleet.wait-for-workers-timeout": 7, "jobfleet.max-nesting-depth": 3}):
        options = Options()
        assert (options.wait_for_workers_timeout, options.max_nesting_depth) == (7, 3)
        assert Options(wait_for_workers_timeout=8).wait_for_workers_timeout == 8
    assert Options().max_nesting_depth == DEFAULTS["max-nesting-depth"]


def test_a_wrong_value_there_is_an_error_too():
    with dask.config.set({"jobfleet.wait-for-workers-timeout": "soon"}), pytest.raises(OptionTypeError, match="soon"):
        Options()


def test_dasks_configuration_lists_them():
    assert dask.config.get("jobfleet") == DEFAULTS


# What is handed on


def test_merging_replaces_what_is_given_and_keeps_the_rest():
    options = Options(retries=1, priority=2, scatter=[1])
    merged = options.merged({"retries": 3})
    assert (merged.retries, merged.priority, merged.scatter) == (3, 2, (1,))
    assert options.retries == 1
    assert options.merged({}) is options


def test_dask_is_handed_what_the_user_gave_and_nothing_else():
    assert Options().submit_keywords() == {"priority": 0}
    given = {
        "workers": ["a"],
        "allow_other_workers": True,
        "resources": {"GPU": 1},
        "priority": 5,
        "fifo_timeout": "1s",
    }
    assert Options(**given, retries=3, address="x", pure=True).submit_keywords() == given


def test_inner_calls_inherit_what_bears_on_where_and_how_tasks_run():
    options = Options(
        retries=2,
        wait_for_workers_timeout=5,
        max_nesting_depth=4,
        workers="a",
        resources={"GPU": 1},
        priority=3,
        client=object(),
        scatter=[1],
        initializer=print,
    )
    inherited = dict(options.inherited())
    assert inherited == {
        "retries": 2,
        "wait_for_workers_timeout": 5,
        "max_nesting_depth": 4,
        "worker_ttl": DEFAULTS["worker-ttl"],
        "workers": ["a"],
        "resources": {"GPU": 1},
        "priority": 3,
    }
    assert pickle.loads(pickle.dumps(options.inherited())) == options.inherited()
    assert Options.from_keywords(inherited).submit_keywords() == options.submit_keywords()


def test_retries_for_named_exceptions_are_not_handed_on():
    """The class may be one of the caller's script."""
    assert Options(retry_on=OSError).retry_on == (OSError,)
    assert dict(Options(retries=2).inherited())["retries"] == 2
    assert dict(Options(retries=2, retry_on=[OSError, ValueError]).inherited())["retries"] == 0
