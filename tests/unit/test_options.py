"""Settings are checked when they are given, and each error says what would be accepted."""

import dataclasses
import pickle
import re

import dask.config
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from joblib import Parallel, delayed, parallel_config
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


NAN, INF = float("nan"), float("inf")
SECONDS = "number of seconds"
NUMBER = "number"
INTEGER = "integer"
ADDRESS = "address of a scheduler, such as 'tcp://host:8786'"
FILE = "path of the file that a scheduler has written"
CLIENT = "distributed.Client or a cluster"
ENGINE = '"local", an engine object'
WORKERS = "worker"


class NotAClient:
    scheduler_address = 5


#: What is given, of which type or value it is wrong, and what the message says would be accepted.
WRONG_TYPES = [
    *[("client", value, CLIENT) for value in ["tcp://h:1", 5, object(), NotAClient(), NotAClient, True, []]],
    *[(name, value, ADDRESS) for name in ("address", "scheduler_host") for value in [5, b"tcp://h:1", ["h:1"], True]],
    *[("scheduler_file", value, FILE) for value in [5, b"file", True, ["file"]]],
    *[("engine", value, ENGINE) for value in [5, object(), True, {}]],
    *[("initializer", value, "function") for value in [5, "print", (print,)]],
    *[("initargs", value, "tuple") for value in [5, None, "ab", {"a": 1}]],
    *[("resources", value, "mapping") for value in [["GPU"], "GPU", 1, ("GPU", 1)]],
    ("resources", {1: 1}, "names"),
    *[("resources", {"GPU": value}, NUMBER) for value in ["1", None, True, [1], 1j]],
    *[("wait_for_workers_timeout", value, SECONDS) for value in ["10", None, True, [1], 1j]],
    *[("worker_ttl", value, SECONDS) for value in ["30", True, [1], 1j]],
    *[("task_timeout", value, SECONDS) for value in ["30", True, [1], 1j]],
    *[("priority", value, NUMBER) for value in ["high", None, True, [1]]],
    *[("retries", value, INTEGER) for value in [1.5, True, "2", None, NAN, INF]],
    *[("max_nesting_depth", value, INTEGER) for value in ["3", 2.0, True, None, INF]],
    *[("workers", value, WORKERS) for value in [5, [5], {"a": 1}, b"a", [b"a"], True]],
    *[("allow_other_workers", value, "bool") for value in ["no", 1, None]],
    *[("speculation", value, "bool") for value in ["no", 1, None]],
    *[("return_exceptions", value, "bool") for value in ["no", 1, None]],
    *[("retry_on", value, "class of exceptions") for value in ["OSError", (), (OSError, int), None, OSError()]],
    *[("fifo_timeout", value, "time as Dask takes it") for value in [[1], {}, 1j]],
    *[("scatter", value, "scatter=[X, y]") for value in [5, "text", b"bytes"]],
]
WRONG_VALUES = [
    *[
        (name, value, ADDRESS)
        for name in ("address", "scheduler_host")
        for value in ["", "host", "tcp://", "tcp://host", "tcp://host:port", "tcp://host:0", "host:99999", ":8786"]
    ],
    ("address", "http s://h:1 2", ADDRESS),
    ("address", "tcp://a b:1", ADDRESS),
    ("scheduler_file", "", FILE),
    ("scheduler_file", "/does/not/exist.json", FILE),
    *[("engine", value, ENGINE) for value in ["", "dask", "Local"]],
    *[("wait_for_workers_timeout", value, "") for value in [-1, NAN, INF, -INF, 10**400]],
    *[("worker_ttl", value, "") for value in [0, -1, NAN, INF, 0.5]],
    *[("task_timeout", value, "None for no limit") for value in [0, 0.0, NAN, INF]],
    ("task_timeout", -1, "at least 0"),
    *[("priority", value, "finite") for value in [NAN, INF]],
    ("retries", -1, "at least 0"),
    *[("max_nesting_depth", value, "at least 1") for value in [0, -1]],
    *[("resources", {"GPU": value}, "GPU") for value in [-1, NAN, INF]],
    *[("workers", value, "at least one") for value in [[], "", ["a", ""], ()]],
    ("allow_other_workers", True, "workers="),
    *[("fifo_timeout", value, "time as Dask takes it") for value in ["soon", "1 parsec", "-1s", INF]],
    ("fifo_timeout", -1, "time as Dask takes it"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG_TYPES)
def test_a_wrong_type_is_an_error_that_says_what_is_accepted(name, value, accepted):
    with pytest.raises(OptionTypeError) as error:
        Options.from_keywords({name: value})
    assert name in str(error.value)
    assert accepted in str(error.value)


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG_VALUES)
def test_a_value_that_cannot_be_is_an_error_that_says_what_is_accepted(name, value, accepted):
    with pytest.raises(OptionValueError) as error:
        Options.from_keywords({name: value})
    assert name in str(error.value)
    assert accepted in str(error.value)


def test_no_option_takes_just_anything():
    """A new one has to be in the table."""
    without_effect = {"pure", "loop", "idle_worker_timeout", "context", "temp_folder"}
    assert {name for name, *_ in WRONG_TYPES} == set(NAMES) - without_effect


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_the_threads_of_a_task_are_a_number(value):
    with (
        parallel_config("jobfleet", engine="local", inner_max_num_threads=value),
        pytest.raises((OptionTypeError, OptionValueError), match="inner_max_num_threads must be"),
    ):
        Parallel(n_jobs=2)(delayed(abs)(i) for i in range(2))


def test_a_mode_of_sharing_that_joblib_does_not_have():
    with parallel_config("jobfleet", engine="local"), pytest.raises(OptionValueError, match="mmap_mode must be one of"):
        Parallel(n_jobs=2, mmap_mode="x")(delayed(abs)(i) for i in range(2))


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "{}", '"x"'])
def test_a_scheduler_file_that_names_no_scheduler(tmp_path, content):
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with pytest.raises(OptionValueError, match="scheduler_file must be"):
        Options(scheduler_file=str(file))


def test_a_scheduler_file_may_be_given_as_a_path(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://h:1"}')
    assert Options(scheduler_file=file).scheduler_file == str(file)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://host:8786",
        "host:8786",
        "tls://10.0.0.1:1",
        "tcp://[::1]:8786",
        "[::1]:80",
        "ws://h:80/ws",
        "inproc://a/1/2",
    ],
)
def test_addresses_of_all_kinds(address):
    assert Options(address=address).address == address


def test_a_cluster_is_known_by_its_scheduler():
    class GatewayCluster:
        scheduler_address = "gateway://h/1"

    assert Options(client=GatewayCluster())


CONFIGURED = [
    ("wait-for-workers-timeout", "soon", OptionTypeError),
    ("wait-for-workers-timeout", NAN, OptionValueError),
    ("max-nesting-depth", 0, OptionValueError),
    ("worker-ttl", INF, OptionValueError),
    ("task-timeout", 0, OptionValueError),
    ("task-timeout", "1s", OptionTypeError),
    ("shared-memory", None, OptionTypeError),
    ("shared-memory", "", OptionTypeError),
    ("shared-memory-share", "half", OptionTypeError),
    ("shared-memory-share", 0, OptionValueError),
    ("shared-memory-share", 1.5, OptionValueError),
    ("shared-memory-share", NAN, OptionValueError),
    ("host", ["h"], OptionTypeError),
]


@pytest.mark.parametrize(("name", "value", "kind"), CONFIGURED)
def test_a_wrong_setting_in_dasks_configuration_names_it_and_its_variable(name, value, kind):
    with dask.config.set({f"jobfleet.{name}": value}), pytest.raises(kind) as error:
        Options()
    assert f"jobfleet.{name} in Dask's configuration" in str(error.value)
    assert f"DASK_JOBFLEET__{name.upper().replace('-', '_')}" in str(error.value)


def test_no_setting_is_left_unchecked():
    assert {name for name, *_ in CONFIGURED} == set(DEFAULTS)


def test_numbers_of_any_kind_are_numbers():
    Options(wait_for_workers_timeout=np.float32(1), priority=np.int64(-5), resources={"GPU": np.float64(0.5)})
    Options(retries=np.int64(2), max_nesting_depth=np.uint8(3), task_timeout=np.float64(0.5), fifo_timeout="100 ms")


CHOICES = ["client", "address", "scheduler_host", "scheduler_file", "engine"]


@pytest.fixture
def choices(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://h:1"}')

    class Cluster:
        scheduler_address = "tcp://h:1"

    return dict(zip(CHOICES, [Cluster(), "tcp://h:1", "tcp://h:1", str(file), "local"], strict=True))


@pytest.mark.parametrize("one", CHOICES)
@pytest.mark.parametrize("other", CHOICES)
def test_only_one_may_choose_the_cluster(choices, one, other):
    if one == other:
        Options.from_keywords({one: choices[one]})
        return
    both = {one: choices[one], other: choices[other]}
    with pytest.raises(OptionValueError, match=f"({one} and {other}|{other} and {one}) each choose"):
        Options.from_keywords(both)
    with pytest.raises(OptionValueError, match="each choose"):
        Options.from_keywords({one: choices[one]}).merged({other: choices[other]})


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
    assert Options(**given, retries=3, address="h:1", pure=True).submit_keywords() == given


def test_inner_calls_inherit_what_bears_on_where_and_how_tasks_run():
    options = Options(
        retries=2,
        wait_for_workers_timeout=5,
        max_nesting_depth=4,
        workers="a",
        resources={"GPU": 1},
        priority=3,
        address="tcp://h:1",
        scatter=[1],
        initializer=print,
    )
    inherited = dict(options.inherited())
    assert inherited == {
        "retries": 2,
        "wait_for_workers_timeout": 5,
        "max_nesting_depth": 4,
        "worker_ttl": DEFAULTS["worker-ttl"],
        "task_timeout": None,
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
