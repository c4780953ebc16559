"""Both ends speak the same version or say which they speak, and nothing but plain values passes."""

import dataclasses
import os
import pickle

import pytest
from tests.unit.chunks import Client, here, named_in, request, run_here, spec

from jobfleet import _wire as wire
from jobfleet._data.encode import Encoder
from jobfleet._wire import WIRE_VERSION, CallSpec, Reply, Request, TaskFailure, process_token
from jobfleet.errors import WireVersionError

pytestmark = pytest.mark.timeout(20)

FAILURE = TaskFailure(wire.RAISED, b"pickle", "ValueError", "message", "Traceback ...", "")
MESSAGES = [
    CallSpec(
        call_id="c",
        depth=2,
        origin="process",
        capture=True,
        filters=(("error", None, (("builtins", "Warning"),), ("a.b", 2), 0),),
        inner_max_num_threads=3,
        host_slots=8,
        initializer=b"pickle",
        task_timeout=1.5,
        nested=(("retries", 1), ("resources", {"GPU": 1.0})),
        callers=(("batch_of_f_1_calls-1", 2),),
    ),
    Request(
        spec=b"spec",
        functions=(b"f", b"g"),
        items=((wire.MANY, 0, b"calls"), (wire.ONE, None, b"call", ((0, True, False),))),
        scattered=(("7", ((1, True, False), (2, True, True))),),
    ),
    Reply(
        worker="tcp://127.0.0.1:1",
        seconds=0.25,
        squares_s2=0.04,
        n_timed=2,
        results=((wire.MANY, 2, b"results"), (wire.ONE, b"result", 1)),
        failure=FAILURE.as_tuple(),
        events=((0, (("out", "text"),)),),
        nested=True,
    ),
]
by_kind = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)


@by_kind
def test_comes_back_equal(message):
    again = type(message).from_bytes(message.to_bytes())
    assert again == message
    assert {type(getattr(again, f.name)) for f in dataclasses.fields(again)} <= {
        str, bytes, int, float, bool, tuple, type(None)
    }  # fmt: skip


@by_kind
def test_passes_as_plain_values_without_a_word_of_any_class(message):
    assert named_in(message.to_bytes()) == set()


@by_kind
@pytest.mark.parametrize("version", [WIRE_VERSION + 1, WIRE_VERSION - 1, "2"])
def test_another_version_is_an_error_that_names_both(message, version, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wire, "WIRE_VERSION", version)
        data = message.to_bytes()
    with pytest.raises(WireVersionError) as error:
        type(message).from_bytes(data)
    assert f"version {version} " in str(error.value)
    assert f"version {WIRE_VERSION}" in str(error.value)
    assert type(message).__name__ in str(error.value)


@by_kind
def test_another_version_may_have_other_fields(message):
    data = pickle.dumps((WIRE_VERSION + 1, ("one field only",)))
    with pytest.raises(WireVersionError):
        type(message).from_bytes(data)


@by_kind
def test_values_are_frozen_and_have_no_room_for_more(message):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(message)[0].name, 1)
    assert not hasattr(message, "__dict__")


def test_a_failure_travels_inside_a_reply_as_a_tuple():
    assert TaskFailure(*FAILURE.as_tuple()) == FAILURE
    assert type(FAILURE.as_tuple()) is tuple


def test_a_worker_that_gets_a_spec_of_another_version_says_so(monkeypatch):
    client = Client()
    tasks = [client.encode(abs, -1)]
    with monkeypatch.context() as patch:
        patch.setattr(wire, "WIRE_VERSION", 99)
        other = spec()
    packed = dataclasses.replace(
        client.pack(tasks), request=dataclasses.replace(request(client.pack(tasks)), spec=other).to_bytes()
    )
    outcome = run_here(packed, here())
    assert isinstance(outcome.error, WireVersionError)


def test_what_really_passes_names_none_of_our_modules():
    """Neither a request nor a reply, whatever tasks they hold: the other end may know us by another name."""
    client = Client(scatter=[[1]])
    tasks = [client.encode(f, *a) for f, a in [(abs, (-1,)), (len, ([1],)), (divmod, (1, 0))]]
    packed = client.pack(tasks)
    outcome = run_here(packed, here())
    assert named_in(packed.request) == set()
    assert named_in(outcome[0]) == set()
    functions = [data for data, *_ in request(packed).functions]
    for inner in [request(packed).spec, *functions, *(item[2] for item in request(packed).items)]:
        assert not any("jobfleet" in name for name in named_in(inner)), named_in(inner)


def test_the_check_itself_finds_classes():
    assert named_in(pickle.dumps(Encoder, protocol=5)) == {"jobfleet._data.encode"}
    assert named_in(pickle.dumps(Encoder, protocol=2)) == {"jobfleet._data.encode"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_each_process_has_a_token_of_its_own_also_a_forked_one():
    mine = process_token()
    assert process_token() == mine
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, process_token().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() not in ("", mine)
