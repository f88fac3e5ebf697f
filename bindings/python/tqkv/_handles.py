# SPDX-License-Identifier: Apache-2.0
"""The C handles of a cache and of its batches: who may use them at once, and who destroys them, and when.

The library notices two calls at once but does not wait, and what the package has checked (the rows of a plan,
an open handle) must still hold when the C function runs. So a call takes its turn here before it checks
anything: `shared` for attend with a workspace of its own, `exclusive` for everything else. Waiting is done on
plain locks inside with statements alone, so a signal's exception at any place leaves nothing locked.

Finalizers take no lock, as the collector may run one in the middle of a call: what they leave is done by the
next exclusive call.
"""
import collections
import contextlib
import os
import sys
import threading
import weakref

from ._ffi import check
from .errors import InvalidState

_alive = weakref.WeakSet()
_NO_TURN = contextlib.nullcontext()


class Unique:
    """Stands for memory of this process: neither pickled nor copied, which would give a second owner."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        raise TypeError(f"{type(self).__name__}: stands for memory of this process; it cannot be pickled or "
                        "copied")


class Opened(Unique):
    """Stands for a handle that is destroyed once: by close, when the object is collected, or at the
    interpreter's end. A context manager."""

    def _own(self, library, handle, keep, kind):
        self._handles = Handles(library, handle, keep, kind)
        self._finalizer = weakref.finalize(self, self._handles.destroy_quietly)

    def close(self) -> None:
        """Destroys it now, and what was made from it; waits for calls that run in other threads and for the
        work that they enqueued. Idempotent; every other call then raises InvalidState. Memory of the
        caller's stays."""
        with self._handles.exclusive(closing=True):
            self._handles.destroy()
        self._finalizer.detach()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return not self._handles.cache.value


class Handles:
    """Shared by the objects of one cache and their finalizers; refers to none of them.

    cache    CacheHandle, of value None once it is destroyed
    batches  {id: BatchHandle} of those that live; a destroyed one has the value None
    keep     what the cache's memory stands on: the pool, the allocator's callbacks
    kind     "cache", or "codec" or "quantizer", which have no batches
    ops      what torch's operators know of it (tqkv.torch), or None; they take turns of their own, which the
             calls here take as well
    """

    def __init__(self, library, cache, keep, kind="cache"):
        self.library, self.cache, self.batches, self.keep, self.kind = library, cache, {}, keep, kind
        self.ops = None
        self._process = os.getpid()
        self._later = collections.deque()
        self._unlocked()
        _alive.add(self)

    def _unlocked(self):
        self._lock = threading.RLock()
        # lock held during a shared call: (thread, first byte of its workspace, end). One that is not locked
        # is left over from a call that a signal ended.
        self._shared = {}
        if self.ops is not None:
            self.ops.after_fork()

    # ---- turns

    @contextlib.contextmanager
    def exclusive(self, closing=False):
        """A call beside which nothing else runs; waits for the calls of other threads. Gives the cache's
        handle. closing: the cache may be closed already."""
        self._refuse_nested()
        with self._lock:
            for running in list(self._shared):
                with running:
                    pass
            self._shared.clear()
            with _NO_TURN if self.ops is None else self.ops.exclusive:
                self._do_left()
                if not closing:
                    self._refuse_closed()
                yield self.cache

    @contextlib.contextmanager
    def shared(self, workspace):
        """A call that runs beside others of its kind, each in memory of its own; waits for an exclusive
        one."""
        self._refuse_nested()
        running = threading.Lock()
        first, end = workspace.pointer, workspace.pointer + workspace.num_bytes
        with running:
            try:
                with self._lock:
                    self._refuse_closed()
                    for other, (thread, other_first, other_end) in list(self._shared.items()):
                        if first < other_end and other_first < end and other.locked():
                            raise InvalidState(f"workspace = {first:#x}: busy: thread {thread} attends in it")
                    self._shared[running] = threading.get_ident(), first, end
                with _NO_TURN if self.ops is None else self.ops.shared:
                    yield self.cache
            finally:
                self._shared.pop(running, None)

    def nested(self):
        """Whether this thread is inside a call on the cache: then a finalizer, a signal handler or an
        allocator asks."""
        me = threading.get_ident()
        return self._lock._is_owned() or bool(self._shared) and any(
            thread == me and running.locked() for running, (thread, _, _) in list(self._shared.items()))

    def _refuse_nested(self):
        if self.nested():
            raise InvalidState(f"{self.kind}: busy: this thread is in the middle of another call on it")

    def _refuse_closed(self):
        if not self.cache.value:
            raise InvalidState(f"{self.kind}: is closed")

    # ---- ends

    def left(self, function):
        """For finalizers: `function` is called at the start of the next exclusive call; its errors go
        nowhere."""
        self._later.append(function)

    def _do_left(self):
        while self._later:
            function = self._later.popleft()
            if self.cache.value:
                with contextlib.suppress(Exception):
                    function()

    def destroy_batch(self, batch):
        """Exclusive."""
        if id(batch) in self.batches:
            check(self.library, self.library.tq_batch_destroy(batch))
            if self.ops is not None:
                self.ops.unbind(batch)
            del self.batches[id(batch)]
            batch.value = None

    def destroy(self):
        """Exclusive. Batches go before their cache."""
        for batch in list(self.batches.values()):
            self.destroy_batch(batch)
        if self.ops is not None:
            self.ops.close()
        if self.cache.value:
            check(self.library, getattr(self.library, f"tq_{self.kind}_destroy")(self.cache))
            self.cache.value = self.keep = None

    def destroy_quietly(self):
        """The cache's finalizer. A forked process does nothing: to scrub the pages would copy them first. Nor
        does an interpreter that is torn down with the whole process, as happens to a forgotten
        sub-interpreter: there, up to CPython 3.11, a call that lets go of the interpreter's lock ends its
        thread, and a process whose main thread ended that way does not end by itself."""
        if self._process != os.getpid() or sys.is_finalizing():
            return
        with contextlib.suppress(Exception), self.exclusive(closing=True):
            self.destroy()


def _after_fork():
    """The threads that held locks, or ran in the library, are not in the child."""
    for handles in list(_alive):
        handles._unlocked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
