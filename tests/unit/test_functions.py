"""Tasks share a function only where none can see what another did to it."""

import functools
import math
import operator
import sys
import types
import weakref

import cloudpickle
import numpy as np
import pytest
from tests.unit.chunks import Client, in_main, request

from jobfleet._data.functions import stateless

pytestmark = pytest.mark.timeout(20)


def module_function(x):
    return x


class Plain:
    def method(self, x):
        return x


WITHOUT_STATE = {
    "constant": "def f(x): return x + 1",
    "lambda": "f = lambda x: x + 1",
    "defaults": "def f(x, y=1, *, z='a', w=None, b=b'', c=1j): return x + y",
    "globals": "K = 1\ndef f(x): return x + K",
    "module": "import math\ndef f(x): return math.floor(x) + 1",
    "helper": "def g(x): return x + 1\ndef f(x): return g(x)",
    "recursion": "def f(x): return x + 1 if x < 100 else f(x - 1)",
    "two that call each other": "def f(x, n=2): return g(x, n - 1) if n else x + 1\ndef g(x, n): return f(x, n)",
    "class of a module": "from fractions import Fraction\ndef f(x): return int(Fraction(x) + 1)",
    "builtins": "def f(x): return max(x, 0) + len('a')",
    "inner function": "K = 1\ndef f(x): return (lambda y: y + K)(x)",
    "a global that does not exist": "def f(x): return x + 1 if x >= 0 else missing",
}


@pytest.mark.parametrize("source", WITHOUT_STATE.values(), ids=WITHOUT_STATE)
def test_a_function_without_state_is_pickled_once_and_shared(source):
    f = in_main(source)[0].f
    client = Client()
    tasks = [client.encode(f, i) for i in range(3)]
    assert tasks[0].function is tasks[1].function is tasks[2].function is not None
    packed = client.pack(tasks)
    assert len(request(packed).functions) == 1
    assert client.run(tasks) == [1, 2, 3]


@pytest.mark.parametrize("function", [math.sqrt, operator.add, len, int, Plain, module_function, Plain.method])
def test_what_travels_by_name_is_shared(function):
    proof = stateless(function)
    assert proof is not None
    assert proof.function is function


#: Each f tells how often the object that it is was called.
WITH_STATE = {
    "closure": """
def make():
    seen = []
    def f(x):
        seen.append(x)
        return len(seen)
    return f
f = make()""",
    "closure that is rebound": """
def make():
    n = 0
    def f(x):
        nonlocal n
        n += 1
        return n
    return f
f = make()""",
    "attribute": "def f(x):\n    f.n += 1\n    return f.n\nf.n = 0",
    "default": "def f(x, seen=[]):\n    seen.append(x)\n    return len(seen)",
    "keyword default": "def f(x, *, seen=[]):\n    seen.append(x)\n    return len(seen)",
    "nested default": "def f(x, seen=([],)):\n    seen[0].append(x)\n    return len(seen[0])",
    "global": "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)",
    "global of a helper": "seen = []\ndef g(x):\n    seen.append(x)\ndef f(x):\n    g(x)\n    return len(seen)",
    "default of a helper": "def g(x, seen=[]):\n    seen.append(x)\n    return len(seen)\ndef f(x): return g(x)",
    "global of an inner function": """
seen = []
def f(x):
    def g():
        seen.append(x)
        return len(seen)
    return g()""",
    "global behind an attribute": """
class Box: pass
box = Box()
box.seen = []
def f(x):
    box.seen.append(x)
    return len(box.seen)""",
    "partial": """
import functools
def g(seen, x):
    seen.append(x)
    return len(seen)
f = functools.partial(g, [])""",
    "object": """
class Counter:
    def __init__(self): self.n = 0
    def __call__(self, x):
        self.n += 1
        return self.n
f = Counter()""",
    "bound method": """
class Counter:
    def __init__(self): self.n = 0
    def add(self, x):
        self.n += 1
        return self.n
f = Counter().add""",
    "wrapper": """
import functools
def counted(function):
    n = 0
    @functools.wraps(function)
    def wrapper(x):
        nonlocal n
        n += 1
        return n
    return wrapper
@counted
def f(x): return x""",
}
STATE_MADE_BY_THE_TASK = {
    "global that the task rebinds": "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n",
    "global that the task makes": """
def f(x):
    global seen
    try:
        seen += 1
    except NameError:
        seen = 1
    return seen""",
    "attribute that the task makes": "def f(x):\n    f.n = getattr(f, 'n', 0) + 1\n    return f.n",
    "module that is no file's": """
import types
module = types.ModuleType("made_up")
module.seen = []
def f(x):
    module.seen.append(x)
    return len(module.seen)""",
}


@pytest.mark.parametrize(
    "source",
    [pytest.param(source, id=name) for name, source in WITH_STATE.items()]
    + [pytest.param(source, id=name) for name, source in STATE_MADE_BY_THE_TASK.items()],
)
def test_no_task_sees_what_another_did_to_its_function(source):
    f = in_main(source)[0].f
    client = Client()
    assert client.call(f, (7,), (8,), (9,)) == [1, 1, 1]
    # Nor when each is a chunk.
    assert [client.call(f, (i,)) for i in range(3)] == [[1], [1], [1]]


def test_a_function_of_the_real_main_module_travels_by_value(monkeypatch):
    names = vars(sys.modules["__main__"])
    for name in ("seen", "f"):
        monkeypatch.setitem(names, name, None)
    exec(WITH_STATE["global"], names)
    assert Client().call(names["f"], (1,), (2,)) == [1, 1]


def test_the_clients_own_function_is_not_touched():
    script, _ = in_main(WITH_STATE["global"])
    Client().call(script.f, (1,), (2,))
    assert script.seen == []


# Changes between two tasks


@pytest.mark.parametrize(
    "source",
    [
        "K = 1\ndef f(): return K",
        "K = 1\ndef g(): return K\ndef f(): return g()",
        "K = 1\ndef f(): return (lambda: K)()",
        "K = [1]\ndef f(): return K if type(K) is int else K[0]",
    ],
)
def test_a_global_that_is_rebound_between_two_tasks_is_seen(source):
    script, names = in_main(source)
    client = Client()
    first = client.encode(script.f)
    names["K"] = 2
    second = client.encode(script.f)
    names["K"] = 1
    third = client.encode(script.f)
    assert client.run([first, second, third]) == [1, 2, 1]


def test_a_helper_that_is_replaced_between_two_tasks_is_seen():
    script, names = in_main("def g(): return 1\ndef f(): return g()")
    client = Client()
    first = client.encode(script.f)
    exec("def g(): return 2", names)
    assert client.run([first, client.encode(script.f)]) == [1, 2]


def test_a_global_that_becomes_state_is_state():
    script, names = in_main("K = 1\ndef f():\n    K[0] += 1\n    return K[0]")
    client = Client()
    client.encode(script.f)
    names["K"] = [0]
    assert client.call(script.f, (), (), ()) == [1, 1, 1]


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("def f(): return K if 'K' in globals() else 1", "K = 2"),
        ("def f(x=1): return x", "f.__defaults__ = (2,)"),
        ("def f(*, x=1): return x", "f.__kwdefaults__ = {'x': 2}"),
        ("def f(): return getattr(f, 'k', 1)", "f.k = 2"),
        ("def f(): return 1\ndef g(): return 2", "f.__code__ = g.__code__"),
    ],
)
def test_any_change_of_a_function_between_two_tasks_is_seen(source, change):
    script, names = in_main(source)
    client = Client()
    first = client.encode(script.f)
    exec(change, names)
    assert client.run([first, client.encode(script.f)]) == [1, 2]


@pytest.fixture
def module_sent_by_value(monkeypatch):
    """A module that the user sends to the workers with each function: they do not have it."""
    module = types.ModuleType("sent_by_value")
    module.__spec__ = types.SimpleNamespace(name="sent_by_value", loader=None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("seen = []\nK = 1\ndef f(x):\n    seen.append(x)\n    return len(seen)\ndef k(): return K", module.__dict__)
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


def test_no_task_sees_what_another_did_to_a_module_that_is_sent_by_value(module_sent_by_value):
    assert Client().call(module_sent_by_value.f, (1,), (2,), (3,)) == [1, 1, 1]


def test_what_is_rebound_in_a_module_that_is_sent_by_value_is_seen(module_sent_by_value):
    client = Client()
    first = client.encode(module_sent_by_value.k)
    module_sent_by_value.K = 2
    assert client.run([first, client.encode(module_sent_by_value.k)]) == [1, 2]


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(len),
        Plain().method,
        [].append,
        np.add,
        "text".join,
        type("Local", (), {}),
        lambda: module_function,
    ],
)
def test_other_callables_are_pickled_with_each_task(function):
    """The last is a lambda of this module, which cannot be imported; yet all that it uses can."""
    if getattr(function, "__name__", "") == "<lambda>":
        assert stateless(function) is not None
    else:
        assert stateless(function) is None


def test_functions_made_for_one_task_each_are_not_all_kept():
    client = Client()
    made = []
    for i in range(3000):
        function = lambda x: x  # noqa: E731  # a new one each time, as in a generator of tasks
        made.append(weakref.ref(function))
        client.encode(function, i)
    assert sum(function() is not None for function in made) < 2000
