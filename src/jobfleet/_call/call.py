"""The thread that carries one `Parallel` call through: it asks the state machine and acts."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .. import _wire as wire
from .._compat import awaits_results, dispatch_more, fail_call, input_ended
from .._data.buffers import BlobTable
from .._data.encode import Call, EncodedCalls, Encoder, EncodingError, unpicklable_part
from .._data.packing import PackedChunk, pack
from .._data.scatter import ScatteredObject
from .._engine.base import HandedBack, Lost, LostKind, Outcome, Session, Slots
from .._observe.output import emit
from .._sink import Sink
from .._wire import Reply, TaskFailure
from .._worker.interrupt import current, uninterrupted
from ..errors import JobfleetError, TaskTimeoutError
from .collecting import RareCollection
from .describe import label, loss_error, not_readable, not_sendable, task_error, timeout_message
from .durations import Known, durations
from .output import OutputOrder
from .state import (
    AskForMore,
    BatchArrived,
    BatchConsumed,
    CallLimits,
    CallState,
    ChunkCut,
    ChunkLost,
    ChunkReplied,
    Command,
    Deliver,
    DispatchPaused,
    Event,
    Forget,
    GiveUp,
    NoteDeaths,
    Send,
    SlotsChanged,
)
from .tasks import TaskTable

logger = logging.getLogger(__name__)

#: How often an idle driver checks that its engine still lives.
_IDLE_S = 5.0

#: How many messages the driver takes before it acts.
_MAX_TOGETHER = 64

#: How long joblib may be made to dispatch before what has come of it is sent.
_ASK_S = 0.002

#: How long a message is waited for before that. The loop, which has chunks to send and replies to take, needs the
#: interpreter: it gives that up with each write, and gets it back from a thread that computes only after 5 ms or more.
_GIVE_WAY_S = 0.0005
#: And how long when the call's first chunks are to go, which no slot has anything to do before.
_GIVE_WAY_FIRST_S = 0.004
#: And how long if chunks should have come back: their replies may be what the loop cannot get at.
_GIVE_WAY_LONG_S = 0.01

#: How long the end of a call waits for its thread.
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class CallSetup:
    """Gather what a call is made of."""

    parallel: Any
    """The `joblib.Parallel`."""
    session: Session
    spec: bytes
    """A `CallSpec`."""
    limits: CallLimits
    slots: int
    retry_on: tuple[type[BaseException], ...]
    """What the user's function may raise and be run again."""
    max_nbytes: int | None
    copy_on_write: bool
    """Tasks may write to the buffers they share, each for itself."""
    scattered: list[ScatteredObject]
    sink: Sink


class Outputs:
    """Hand a batch's outcome to joblib, and tell when its results have been taken.

    joblib iterates over what it is given, in the thread of whoever wants the results.
    """

    __slots__ = ("_consumed", "_error", "_results")

    def __init__(self, results: list[Any], error: BaseException | None, consumed: Callable[[], None] | None) -> None:
        self._results = results
        self._error = error
        self._consumed = consumed

    def get(self) -> Any:
        """Give the results, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._results if self._consumed is None else self

    def __iter__(self) -> Iterator[Any]:
        # Each result is let go as it is taken: a batch of large ones must not stay whole.
        self._results.reverse()
        while self._results:
            yield self._results.pop()
        if self._consumed is not None:
            self._consumed()


@dataclass(frozen=True, slots=True)
class _Arrived:
    calls: list[Call]
    encoded: EncodedCalls | None
    error: BaseException | None
    failed: dict[int, BaseException]
    """With `return_exceptions`, the errors of those that cannot be sent."""
    callback: Callable[[Outputs], None]


@dataclass(frozen=True, slots=True)
class _Finished:
    chunk: int
    outcome: Outcome | HandedBack


class ParallelCall:
    """Run one `Parallel` call on an engine.

    Notes
    -----
    `submit` and `batch_size` are called with joblib's lock held and return at once; `abort` and
    `finish` may be called from any thread, also by the garbage collector. All else happens in the
    driver's own thread: it packs, unpickles results, emits output, and calls joblib back, which runs
    the user's generator of tasks there.
    """

    def __init__(self, setup: CallSetup) -> None:
        self._setup = setup
        self._session = setup.session
        self._blobs = BlobTable(lambda blob: self._session.drop(blob.digest), setup.session.keeper)
        self._encoder = Encoder(self._blobs, setup.scattered, setup.max_nbytes)
        self._state = CallState(setup.limits, setup.slots)
        self._tasks = TaskTable(self._encoder)
        self._output = OutputOrder(setup.limits.ordered)
        self._deliveries: deque[Deliver] = deque()
        self._n_to_ask_for = 0
        self._news: list[Any] = []
        """Messages that were taken and not acted on."""
        self._gave_way = False
        self._rare_collection = RareCollection()
        self._sent: dict[int, tuple[Send, PackedChunk]] = {}
        self._callbacks: list[Callable[[Outputs], None] | None] = []
        self._function: Any = None
        """That of the first task."""
        self._n_submitted = 0
        self._asked_s: float | None = None
        self._begun = False
        self._ended = False
        self._settled = threading.Event()
        # Its `put` is safe to call from a finalizer, unlike that of a queue with a lock.
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context = setup.sink.context.copy()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="jobfleet-driver", daemon=True)

    def batch_size(self) -> int:
        """Answer joblib how many tasks its next batch should have, which it is about to make."""
        self._asked_s = time.perf_counter()
        return self._state.sizer.batch_size

    def submit(self, calls: list[Call], callback: Callable[[Outputs], None]) -> None:
        """Take a batch from joblib, the first of which starts the driver; never blocks or raises for a task's fault.

        The calls are pickled here, before the user's generator goes on and may change them.
        """
        if not self._begun:
            with uninterrupted():
                self._begin()
        encoded: EncodedCalls | None = None
        error: BaseException | None = None
        reasons: dict[int, Exception] | None = {} if self._setup.limits.return_exceptions else None
        try:
            encoded = self._encoder.encode(calls, reasons)
        except EncodingError as failure:
            reason = failure.__cause__
            assert isinstance(reason, Exception)
            error = self._not_sendable(calls, failure.position, reason)
        failed = {i: self._not_sendable(calls, i, reason) for i, reason in (reasons or {}).items()}
        if self._asked_s is not None and self._n_submitted:  # the first takes longer
            self._state.sizer.observe_making(len(calls), time.perf_counter() - self._asked_s)
        self._n_submitted += len(calls)
        self._inbox.put(_Arrived(calls, encoded, error, failed, callback))

    def _begin(self) -> None:
        self._begun = True
        self._session.watch_slots(lambda slots: self._inbox.put(slots))
        self._thread.start()

    def _not_sendable(self, calls: list[Call], i: int, reason: Exception) -> BaseException:
        error = not_sendable(reason, unpicklable_part(*calls[i]), self._n_submitted + i, calls[i])
        error.__cause__ = reason
        return error

    def pause(self) -> None:
        """Say that joblib has handed over what it does by itself, and that somebody waits for results."""
        self._inbox.put(DispatchPaused())

    def help(self) -> bool:
        """Let the engine use this thread, which has nothing to do but wait; gives whether there is still to wait."""
        region = current()
        if region is not None:
            region.on_request.add(self._settled.set)
        if awaits_results(self._setup.parallel):
            self._session.lend_thread()
        return awaits_results(self._setup.parallel) and not self._settled.is_set()

    def wait(self) -> None:
        """Wait until all results are there or the call has failed.

        joblib would ask a hundred times a second, and so lose some milliseconds of every call.
        """
        while awaits_results(self._setup.parallel) and not self._settled.wait(_IDLE_S):
            pass

    def abort(self) -> None:
        """Give up all that is queued or runs; returns at once."""
        self._ended = True
        self._session.close()
        self._inbox.put(None)

    def explain_timeout(self, error: BaseException | None) -> None:
        """Give joblib's `TimeoutError` its words, if `error` is one."""
        timeout_s = self._setup.parallel.timeout
        if not isinstance(error, multiprocessing.TimeoutError) or error.args or error.__cause__ or timeout_s is None:
            return
        n_done, first = self._tasks.progress()
        error.args = (timeout_message(timeout_s, first, n_done),)

    def finish(self) -> None:
        """End the call; its thread too, unless it was aborted and may be held up by the user's code."""
        aborted = self._ended
        self.abort()
        if self._begun and not aborted and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    # In the driver's thread

    def _run(self) -> None:
        try:
            while not self._ended:
                self._turn()
        except BaseException as error:  # a fault of ours, or of the user's iterable: joblib must hear of it
            logger.debug("the call ends with an error", exc_info=True)
            if not self._ended:
                fail_call(self._setup.parallel, error)
        finally:
            self._settle()
            sizer = self._state.sizer
            if sizer.overall_mean_s is not None:
                durations.note(self._function, Known(sizer.overall_mean_s, self._state.nests, sizer.dispersion_s))
            self._tasks.clear()
            self._blobs.clear()

    def _settle(self) -> None:
        self._rare_collection.end()
        self._settled.set()
        self._session.settle()

    def _turn(self) -> None:
        """Take what has come, act on it, and let joblib dispatch for a moment, once if that is slow, or take a result.

        It then pulls the user's generator, which may be slow: what that yields must be on its way before it is
        pulled again, and what has come of it be delivered in between.
        """
        events = [event for message in self._messages() for event in self._events(message)]
        self._state.input_ended = input_ended(self._setup.parallel)
        commands = self._state.handle_all(events, time.monotonic())
        deliveries = [command for command in commands if isinstance(command, Deliver)]
        # A failure ends joblib's call: nothing may start after it.
        failures = [delivery for delivery in deliveries if delivery.error is not None]
        for delivery in failures:
            self._deliver(delivery)
        if not self._goes_on():
            self._settle()
            return
        for command in commands:
            self._act(command)
        self._session.flush()
        self._deliveries.extend(delivery for delivery in deliveries if delivery.error is None)
        if self._ended:
            return
        if (self._n_to_ask_for or self._deliveries) and self._state.sizer.tasks_are_tiny:
            self._rare_collection.begin()
        # Nobody has a list before its end; of a generator results are waited for, and each has joblib dispatch, too.
        if self._n_to_ask_for and not (self._deliveries and self._setup.limits.streamed):
            if not self._gives_way():
                self._ask_for_more()
        elif self._deliveries:
            self._deliver(self._deliveries.popleft())
            if not self._goes_on():
                self._settle()

    def _goes_on(self) -> bool:
        """Whether there are results to wait for; joblib does not know it before it has dispatched something."""
        return not self._n_submitted or awaits_results(self._setup.parallel)

    def _gives_way(self) -> bool:
        """Let the event loop have the interpreter before more tasks are made; gives whether there is news to act on.

        Not where making tasks is what takes longest: slots wait whatever the loop does, and fewer chunks take less.
        """
        if not self._sent or self._gave_way or self._state.sizer.is_fed_slowly:
            self._gave_way = False
            return False
        way_s = _GIVE_WAY_S if self._state.hold_until_s is None else _GIVE_WAY_FIRST_S
        if self._state.awaits_replies(time.monotonic()):
            way_s = _GIVE_WAY_LONG_S
        with contextlib.suppress(queue.Empty):
            self._news.append(self._inbox.get(timeout=way_s))
            self._gave_way = True  # however much news there is, more tasks are made
        return self._gave_way

    def _ask_for_more(self) -> None:
        """Have joblib dispatch, for a moment if batches come fast: chunks should not be cut from a single small one."""
        until = time.monotonic() + _ASK_S
        while self._n_to_ask_for and not self._ended:
            self._n_to_ask_for -= 1
            dispatch_more(self._setup.parallel, smaller_at_end=self._setup.limits.fixed_batches)
            if input_ended(self._setup.parallel):
                self._n_to_ask_for = 0
                self._inbox.put(None)  # that there are no more may be what is waited for
            first_are_there = not self._sent and 0 < self._state.sizer.n_one_round < self._n_submitted
            if first_are_there or time.monotonic() > until:
                break

    def _messages(self) -> list[Any]:
        """Take the messages that are there; of failures among them the earliest task's counts.

        Waits for one if there is nothing else to do.
        """
        messages, self._news = self._news, []
        try:
            if not (messages or self._deliveries or self._n_to_ask_for):
                self._rare_collection.end()
                messages.append(self._inbox.get(timeout=self._patience_s()))
            while len(messages) < _MAX_TOGETHER:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            if not messages and not self._deliveries and not self._n_to_ask_for and self._state.hold_until_s is None:
                return self._idle()
        return messages

    def _idle(self) -> list[Any]:
        """Look whether there is a reason why nothing comes; gives what takes the place of a message."""
        if not self._goes_on():
            self.abort()  # the caller was interrupted before joblib said that the call is over
        lost = self._session.lost()
        return [] if lost is None else [_Finished(chunk, lost) for chunk in self._sent]

    def _patience_s(self) -> float:
        """Give how long to wait for a message."""
        hold_until_s = self._state.hold_until_s
        if hold_until_s is not None and input_ended(self._setup.parallel) and not self._state.input_ended:
            return 0.0  # there may be nothing more to wait for
        return _IDLE_S if hold_until_s is None else max(0.0, hold_until_s - time.monotonic())

    def _events(self, message: Any) -> Iterator[Event]:
        """Translate a message for the state machine."""
        match message:
            case _Arrived():
                yield self._arrived(message)
            case _Finished(chunk, outcome) if chunk in self._sent:
                if isinstance(outcome, HandedBack):
                    yield self._cut(chunk, outcome.n_kept)
                else:
                    yield self._finished(chunk, outcome)
            case Slots():
                yield SlotsChanged(message.total)
            case BatchConsumed() | DispatchPaused():
                yield message

    def _act(self, command: Command) -> None:
        match command:
            case Send():
                self._send(command)
            case GiveUp():
                _, packed = self._sent.pop(command.chunk)
                self._session.give_up(packed)
            case Forget():
                if not command.ended:
                    self._emit(self._output.take(command.tasks, iter(())))
                self._tasks.forget(command.tasks)
            case NoteDeaths():
                self._session.note_deaths(command.deaths)
            case AskForMore():
                self._n_to_ask_for += command.batches

    def _arrived(self, message: _Arrived) -> BatchArrived:
        self._callbacks.append(message.callback)
        start = self._tasks.add(message.calls, message.encoded)
        for position in message.failed:
            task = range(start + position, start + position + 1)
            self._tasks.forget(task)
            self._emit(self._output.take(task, iter(())))
        if self._function is None:
            self._function = message.calls[0][0]
        known = durations.known(self._function)
        return BatchArrived(len(message.calls), message.error, message.failed, known)

    def _send(self, command: Send) -> None:
        setup = self._setup
        chunk = pack(
            list(self._tasks.pieces(command.tasks)),
            setup.spec,
            setup.max_nbytes,
            copy_on_write=setup.copy_on_write,
            report_every=command.report_every,
            deaths=command.deaths,
            budget_s=command.budget_s,
            others_wait=command.others_wait,
        )
        self._sent[command.chunk] = command, chunk
        inbox = self._inbox
        self._session.submit(
            chunk,
            label(self._tasks.functions(command.tasks), len(command.tasks)),
            lambda outcome: inbox.put(_Finished(command.chunk, outcome)),
            here=command.here,
        )

    def _cut(self, chunk: int, n_kept: int) -> ChunkCut:
        """Leave a chunk its first tasks.

        Whatever else it says later is of another one's tasks: all of it is sent again if its worker falls silent, or
        the scheduler comes back.
        """
        sent, packed = self._sent[chunk]
        self._sent[chunk] = replace(sent, tasks=sent.tasks[:n_kept]), packed
        return ChunkCut(chunk, n_kept)

    def _finished(self, chunk: int, outcome: Outcome) -> Event:
        sent, packed = self._sent.pop(chunk)
        tasks = sent.tasks
        if isinstance(outcome, Lost):
            task = tasks[min(outcome.started or 0, len(tasks) - 1)]
            deaths = max(sent.deaths, outcome.before) + outcome.deaths
            error = loss_error(outcome, task, self._tasks.call(task), deaths)
            raised = outcome.kind is LostKind.OVERRUN and isinstance(error, self._setup.retry_on)
            return ChunkLost(chunk, outcome.kind, error, outcome.started, outcome.deaths, raised, outcome.before)
        reply = Reply.from_bytes(bytes(outcome[0]))
        results, failure, raised = self._results(reply, outcome[1:], tasks)
        ended = tasks[: len(results) + (failure is not None)]
        shown = ((tasks[position], events) for position, events in reply.events if position < len(tasks))
        self._emit(self._output.take(ended, shown))
        if failure is not None and not self._setup.limits.return_exceptions:
            self._emit(self._output.take_all())
        nbytes = packed.own_nbytes + sum(len(part) for part in outcome)
        spread = reply.squares_s2, reply.n_timed
        return ChunkReplied(chunk, results, failure, reply.seconds, reply.nested, nbytes, raised, *spread)

    def _results(self, reply: Reply, buffers: list[Any], tasks: range) -> tuple[list[Any], BaseException | None, bool]:
        """Unpickle the results; gives the first failure after them, and whether `retries` are for it."""
        results: list[Any] = []
        used = 0
        for kind, *fields in reply.results:
            if len(results) >= len(tasks):
                break
            if kind == wire.MANY:
                results.extend(pickle.loads(fields[1]))
                continue
            data, n_buffers = fields
            try:
                results.append(pickle.loads(data, buffers=[_writable(b) for b in buffers[used : used + n_buffers]]))
            except BaseException as reason:  # user code ran: whatever it is, it must not end this thread
                task = tasks[len(results)]
                return results, not_readable(reason, task, self._tasks.call(task), reply.worker), False
            used += n_buffers
        if reply.failure is None or len(results) >= len(tasks):
            return results[: len(tasks)], None, False
        task = tasks[len(results)]
        failure = TaskFailure(*reply.failure)
        error = task_error(failure, task, self._tasks.call(task), reply.worker)
        return results, error, _was_raised(failure, error) and isinstance(error, self._setup.retry_on)

    def _emit(self, shown: list[Any]) -> None:
        """Print and warn what tasks did; a warning that the caller's filters make an error ends the call."""
        for events in shown:
            try:
                emit(events, self._setup.sink)
            except Warning as warning:
                if not self._ended and awaits_results(self._setup.parallel):
                    fail_call(self._setup.parallel, warning)

    def _deliver(self, command: Deliver) -> None:
        callback = self._callbacks[command.batch]
        self._callbacks[command.batch] = None
        if callback is None:
            return
        consumed = None
        if self._setup.limits.streamed:
            event = BatchConsumed(command.batch)
            consumed = lambda: self._inbox.put(event)  # noqa: E731  # a closure over this batch's event
        callback(Outputs(command.results, command.error, consumed))


def _was_raised(failure: TaskFailure, error: BaseException) -> bool:
    """Whether the task raised an error, or took too long: it reports a fault if a call raised it that the task made."""
    if failure.kind == wire.RAISED:
        return isinstance(error, TaskTimeoutError) or not isinstance(error, JobfleetError)
    return failure.kind == wire.OVERRAN or failure.part.startswith("exception")


def _writable(buffer: Any) -> Any:
    """Give a buffer that the result may own: what comes from the network may be read-only."""
    return bytearray(buffer) if memoryview(buffer).readonly else buffer
