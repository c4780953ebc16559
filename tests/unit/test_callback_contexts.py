"""Tasks of scikit-learn, each of which gets a context that all others can be reached from."""

import pickle

import pytest
from joblib import parallel_config
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
from tests.unit.chunks import here
from tests.unit.test_call import Engine

from jobfleet._backend import JobfleetBackend
from jobfleet._data.buffers import BlobTable, InProcess
from jobfleet._data.encode import Encoder
from jobfleet._engine.local import run_here
from jobfleet._wire import Request

pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks since 1.9")

N_FITS = 30


class Monitor:
    """Look at the tree, as a callback may."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        pass


def contexts(estimator):
    """Give the contexts of an estimator's fits, as a search makes them."""
    search = estimator._init_callback_context(max_subtasks=1).subcontext("search", max_subtasks=N_FITS)
    return [search.subcontext(f"fit {i}") for i in range(N_FITS)]


def travelled(*args, **kwargs):
    """Give a task's arguments as they arrive."""
    (task,) = Encoder(BlobTable(lambda blob: None, InProcess())).encode([(travelled, args, kwargs)])
    assert not task.buffers
    return pickle.loads(task.data)


def root_of(context):
    return context if context.parent is None else root_of(context.parent)


def path(context):
    """Give what callbacks know of a context and of those above it."""
    above = [] if context.parent is None else path(context.parent)
    return [*above, (context.task_name, context.task_id, context.init_time, context.estimator_name)]


def test_a_fit_brings_its_way_up_to_the_root_and_nothing_else():
    search = GridSearchCV(DecisionTreeClassifier(), {})
    mine = contexts(search)[7]
    (caller,), keywords = travelled(search, callback_ctx=mine)
    assert path(keywords["callback_ctx"]) == path(mine)
    root = root_of(keywords["callback_ctx"])
    assert root is caller._callback_fit_ctx
    assert [context.task_name for context in root] == ["fit", "search", "fit 7"]
    assert root.root_uuid == mine.root_uuid
    assert len(list(root_of(mine))) == N_FITS + 2, "the caller's own tree is as it was"


def test_what_is_below_a_fit_comes_along():
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))[7]
    mine.max_subtasks = 2
    below = [mine.subcontext("step"), mine.subcontext("step")]
    below[0].max_subtasks = 1
    below[0].subcontext("deeper")
    _, keywords = travelled(callback_ctx=mine)
    assert [context.task_name for context in keywords["callback_ctx"]] == ["fit 7", "step", "deeper", "step"]


def test_with_callbacks_all_of_the_tree_comes():
    search = GridSearchCV(DecisionTreeClassifier(), {}).set_callbacks(Monitor())
    _, keywords = travelled(callback_ctx=contexts(search)[7])
    assert len(list(root_of(keywords["callback_ctx"]))) == N_FITS + 2


def test_with_a_callback_of_the_estimator_that_is_fitted_all_of_the_tree_comes():
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))[7]
    (fitted,), keywords = travelled({"deep": [Monitor()]}, callback_ctx=mine)
    assert len(list(root_of(keywords["callback_ctx"]))) == N_FITS + 2
    assert type(fitted["deep"][0]) is Monitor


def test_a_callback_is_met_though_one_was_sent_before_by_itself():
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))[7]
    calls = [(travelled, ([Monitor()],), {}), (travelled, ([Monitor()],), {"callback_ctx": mine})] * 2
    tasks = Encoder(BlobTable(lambda blob: None, InProcess())).encode(calls)
    for task in tasks[1::2]:
        _, keywords = pickle.loads(task.data)
        assert len(list(root_of(keywords["callback_ctx"]))) == N_FITS + 2


def test_each_fit_of_a_batch_brings_its_own_way_up():
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))
    mine[0].max_subtasks = 1
    mine[0].subcontext("step")
    calls = [(travelled, ([mine[0]],), {}), *((travelled, (), {"callback_ctx": one}) for one in mine)]
    _, *tasks = Encoder(BlobTable(lambda blob: None, InProcess())).encode(calls)
    for i, task in enumerate(tasks):
        _, keywords = pickle.loads(task.data)
        below = ["step"] if i == 0 else []
        names = [context.task_name for context in root_of(keywords["callback_ctx"])]
        assert names == ["fit", "search", f"fit {i}", *below]


def test_contexts_that_came_another_way_are_not_touched():
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))
    ((held,),), _ = travelled([mine[7]])
    assert len(list(root_of(held))) == N_FITS + 2
    (two, others), _ = travelled(mine[7], mine[8])
    assert root_of(two) is root_of(others)
    assert len(list(root_of(two))) == N_FITS + 2


def test_contexts_that_say_how_they_pickle_are_asked(monkeypatch):
    """A later release of scikit-learn may."""
    mine = contexts(GridSearchCV(DecisionTreeClassifier(), {}))[7]
    monkeypatch.setattr(type(mine), "__getstate__", lambda self: {"task_name": self.task_name}, raising=False)
    _, keywords = travelled(callback_ctx=mine)
    assert vars(keywords["callback_ctx"]) == {"task_name": "fit 7"}


def fit_sizes(n_candidates):
    """Give the sizes of the pickles of a search's fits."""
    sizes = []

    def answer(chunk):
        sizes.extend(len(pickled) for _, _, pickled, _ in Request.from_bytes(chunk.request).items)
        return run_here(chunk, here())

    search = GridSearchCV(DecisionTreeClassifier(), {"max_depth": range(1, 1 + n_candidates)}, cv=2)
    with parallel_config(JobfleetBackend(engine=Engine(answer))):
        search.fit(*load_iris(return_X_y=True))
    assert len(sizes) == 2 * n_candidates
    return sizes


def test_the_fits_of_a_large_search_are_not_larger():
    assert max(fit_sizes(50)) < max(fit_sizes(5)) + 500
