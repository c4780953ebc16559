"""Large objects that have no buffers are pickled once and sent once per host, and each task has its own."""

import pytest
from joblib import Parallel, delayed, parallel_config

from tests.witness import meet

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

N = 4_000


def vocabulary():
    return {f"word {i}": f"{i}".ljust(500) for i in range(N)}


class Model:
    """Fitted, and made of Python objects only."""

    def __init__(self, words):
        self.nodes = [{"word": word, "next": [text]} for word, text in words.items()]

    def size(self, _):
        return len(self.nodes)


def use(words, i, directory=None, n=1):
    if directory is not None:
        meet(directory, n)
    seen = len(words), words["word 7"].strip()
    words[f"own {i}"] = "only this task's"
    return seen


def test_it_is_one_file_on_the_clients_host(hosts, connect):
    for _ in range(2):
        hosts.start_worker("")
    client = connect(2)
    words = vocabulary()
    model = Model(words)
    with parallel_config("dask", client=client):
        for _ in range(2):
            assert Parallel(batch_size=1)(delayed(use)(words, i) for i in range(8)) == [(N, "7")] * 8
            assert Parallel(batch_size=1)(delayed(model.size)(i) for i in range(8)) == [N] * 8
            assert len(hosts.files()) == 2
    assert len(words) == N


def test_it_crosses_once_per_host(hosts, connect, tmp_path):
    for name in ("a", "b"):
        for _ in range(2):
            hosts.start_worker(name)
    client = connect(4)
    words = vocabulary()
    with parallel_config("dask", client=client):
        calls = (delayed(use)(words, i, tmp_path / "all", 4) for i in range(4))
        assert Parallel(n_jobs=4, batch_size=1)(calls) == [(N, "7")] * 4
    (here,), (there,), (elsewhere,) = hosts.files(), hosts.files("a"), hosts.files("b")
    assert here.name == there.name == elsewhere.name


def test_one_that_changes_between_two_tasks_arrives_as_it_was(hosts, connect):
    hosts.start_worker("")
    client = connect(1)

    def tasks(words):
        for i in range(8):
            words["word 7"] = f"{i}"
            yield delayed(use)(words, i)

    with parallel_config("dask", client=client):
        results = Parallel(n_jobs=2, batch_size=1, pre_dispatch=2)(tasks(vocabulary()))
    # joblib reads a few calls ahead before it hands over the first: newer content is right, older is not.
    for i, (n, text) in enumerate(results):
        assert n == N
        assert i <= int(text) <= i + 2
