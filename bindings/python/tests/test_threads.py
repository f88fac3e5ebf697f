# SPDX-License-Identifier: Apache-2.0
"""Who may call at once: threads, signal handlers, finalizers, forked processes, sub-interpreters.

Races are made certain: a function of the loaded library is replaced by one that lets another thread loose
between the package's checks and the library's work.
"""
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tqkv
from test_cache import K, Q, V, aligned, cache, filled, random

PACKAGE = Path(__file__).resolve().parents[1]
WAIT = 0.2  # seconds in which a call that does not wait is certainly done


@pytest.fixture
def small():
    with cache(max_sequences=4) as c:
        yield c


def python(code, timeout=60, **environment):
    """Runs a program in an interpreter of its own; -> (exit status, what it printed). One that does not end
    is killed, and a failure."""
    env = {**os.environ, "PYTHONPATH": f"{PACKAGE}:{Path(__file__).parent}",
           "TQKV_LIBRARY": tqkv.library_path(), **environment}
    run = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, timeout=timeout)
    return run.returncode, run.stdout


# ---- threads

def test_threads():
    """Calls on one cache from many threads wait for one another; their error texts stay their own."""
    with cache(max_sequences=8, max_tokens=2048) as c:
        want, wrong = {}, []
        rows = {n: (random(10, 2, 64), random(10, 2, 64), random(10, 4, 64)) for n in range(4)}
        for n, (k, v, q) in rows.items():
            step, sequence = filled(c, k, v)
            want[n] = step.attend(0, q)

        def work(n):
            k, v, q = rows[n]
            try:
                for _ in range(30):
                    step, sequence = filled(c, k, v)
                    if not np.array_equal(step.attend(0, q), want[n]):
                        wrong.append("bits")
                    with pytest.raises(tqkv.InvalidArgument, match=f"layer = {100 + n}:"):
                        step.append(100 + n, k, v)
                    sequence.free()
            except BaseException as error:  # noqa: BLE001
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in rows]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong


ACTIONS = {
    "plan": lambda c, step, sequence: step.plan([sequence], [0], [1]),
    "plan of another batch": lambda c, step, sequence: c.batch().plan([sequence], [0], [1]),
    "append": lambda c, step, sequence: step.append(0, K, V),
    "attend": lambda c, step, sequence: step.attend(0, Q),
    "truncate": lambda c, step, sequence: sequence.truncate(3),
    "free": lambda c, step, sequence: sequence.free(),
    "fork": lambda c, step, sequence: sequence.fork(),
    "read": lambda c, step, sequence: sequence.read(0, 0, 5),
    "batch.close": lambda c, step, sequence: step.close(),
    "cache.close": lambda c, step, sequence: c.close(),
}


@pytest.mark.parametrize("own_workspace", (True, False))
@pytest.mark.parametrize("action", ACTIONS)
def test_a_call_waits_for_an_attend(small, before, action, own_workspace):
    """Also for one in a workspace of its own, which runs beside others of its kind: what it has checked (rows
    of the plan, a living batch and cache) stays true until the library is done."""
    step, sequence = filled(small)
    want, order, threads = step.attend(0, Q), [], []
    room = aligned(small.workspace_bytes()) if own_workspace else None

    def other():
        ACTIONS[action](small, step, sequence)
        order.append("other")

    def let_loose():
        if threads:  # the other call's own attend
            return
        threads.append(threading.Thread(target=other))
        threads[0].start()
        threads[0].join(WAIT)
        order.append("attend")

    before("tq_cache_attend", let_loose)
    np.testing.assert_array_equal(step.attend(0, Q, workspace=room), want)
    threads[0].join(60)
    assert order == ["attend", "other"]


def test_attends_in_their_own_workspaces_run_side_by_side(small, before):
    step, _ = filled(small)
    want, got, both = step.attend(0, Q), [], threading.Barrier(2)
    rooms = [aligned(small.workspace_bytes()) for _ in range(2)]
    before("tq_cache_attend", lambda: both.wait(60))

    def work(room):
        got.append(np.array_equal(step.attend(0, Q, workspace=room), want))

    threads = [threading.Thread(target=work, args=(room,)) for room in rooms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [True, True]


def test_a_workspace_serves_one_call(small, before):
    step, _ = filled(small)
    size, refused = small.workspace_bytes(), []
    room = aligned(size + 256)

    def again():
        with pytest.raises(tqkv.InvalidState, match="workspace = 0x.*: busy"):
            step.attend(0, Q, workspace=room[256:])
        refused.append(True)

    def let_loose():
        thread = threading.Thread(target=again)
        thread.start()
        thread.join(60)

    before("tq_cache_attend", let_loose)
    step.attend(0, Q, workspace=room[:size])
    assert refused == [True]


def test_plans_beside_attends_in_earnest():
    """The same without help, for a second: rows of a plan of 64 never land behind an `out` of one row."""
    code = """
import array, sys, threading, time, numpy as np, tqkv
from test_cache import aligned
sys.setswitchinterval(1e-6)
cache = tqkv.Cache(num_layers=1, num_q_heads=8, num_kv_heads=1, head_dim=64, key_bits=4, value_bits=4,
                   max_tokens=2048, num_threads=1)
sequence, step = cache.sequence(), cache.batch()
x = np.full((512, 1, 64), 0.5, "f4")
step.plan([sequence], [512], [1])
step.append(0, x, x)
room, q, whole = aligned(cache.workspace_bytes()), np.full((1, 8, 64), 0.5, "f4"), np.zeros(64 * 512, "f4")
end, counts = time.time() + 1, {"attended": 0, "refused": 0}

def attend():
    while time.time() < end:
        try:
            step.attend(0, q, out=whole[:512], workspace=room)
            counts["attended"] += 1
        except tqkv.InvalidArgument as error:
            assert "q: has shape [1, 8, 64], expected [64, 8, 64]" in str(error), error
            counts["refused"] += 1

thread = threading.Thread(target=attend)
thread.start()
while thread.is_alive():
    for queries in (1, 64):
        step.plan([sequence], [0], [queries])
assert not whole[512:].any(), "written behind out"
assert counts["attended"] > 10 and counts["refused"] > 10, counts
print("done")
"""
    assert python(code) == (0, "done\n")


# ---- calls inside a call of the same thread: signal handlers, finalizers

@pytest.mark.parametrize("own_workspace", (True, False))
@pytest.mark.parametrize("action", sorted(set(ACTIONS) - {"free"}))
def test_a_call_inside_a_call_is_refused(small, before, action, own_workspace):
    step, sequence = filled(small)
    want, tried, other = step.attend(0, Q), [], small.batch()
    room = aligned(small.workspace_bytes()) if own_workspace else None

    def inside():
        if not tried:
            tried.append(True)
            with pytest.raises(tqkv.InvalidState, match="cache: busy: this thread is in the middle"):
                ACTIONS[action](small, step, sequence)

    before("tq_cache_attend", inside)
    np.testing.assert_array_equal(step.attend(0, Q, workspace=room), want)
    assert tried and len(sequence) == 10
    other.close()


def test_finalizers_run_in_the_middle_of_a_call(small, before):
    """The collector may strike anywhere: a sequence freed by an object's end, and a lost batch, go at the
    start of the next call, and the running one is not disturbed."""

    class Request:
        def __init__(self):
            self.sequence, self.batch, self.cycle = small.sequence(), small.batch(), self

        def __del__(self):
            self.sequence.free()

    step, _ = filled(small)
    want, alive = step.attend(0, Q), small.memory().num_sequences
    before("tq_cache_attend", gc.collect)
    gc.disable()
    try:
        Request()
        assert small.memory().num_sequences == alive + 1
        np.testing.assert_array_equal(step.attend(0, Q), want)
    finally:
        gc.enable()
    assert small.memory().num_sequences == alive and len(small._handles.batches) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_an_exception_from_a_signal_leaves_nothing_locked(small):
    """As Ctrl-C may, at any bytecode of any call; afterwards other threads get their turn."""

    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    step, sequence = filled(small)
    room, hits, done = aligned(small.workspace_bytes()), 0, []
    previous = signal.signal(signal.SIGALRM, ring)
    try:
        for turn in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + turn % 40))
                while True:
                    step.attend(0, Q, workspace=room)
                    small.memory()
            except Alarm:
                hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    threads = [threading.Thread(target=lambda: done.append(step.attend(0, Q, workspace=room))),
               threading.Thread(target=lambda: done.append(len(sequence)))]
    for thread in threads:
        thread.start()
        thread.join(60)
    assert hits == 300 and len(done) == 2


# ---- the end of a process

FORK = """
import os, signal, sys, threading, time, numpy as np, tqkv
from tqkv import _ffi
cache = tqkv.Cache(num_layers=1, num_q_heads=8, num_kv_heads=4, head_dim=64, key_bits=4, value_bits=4,
                   max_tokens=4096, num_threads=2)
sequence, step = cache.sequence(), cache.batch()
k, q = np.ones((500, 4, 64), "f4"), np.ones((64, 8, 64), "f4")
step.plan([sequence], [500], [64])
step.append(0, k, k)
want = step.attend(0, q)
inside, go_on = threading.Event(), threading.Event()
if {hold}:
    library = _ffi.load_library()
    attend = library.tq_cache_attend
    library.tq_cache_attend = lambda *a: (inside.set(), go_on.wait(60), attend(*a))[-1]
    other = threading.Thread(target=step.attend, args=(0, q))
    other.start()
    inside.wait(60)
child = os.fork()
if child == 0:
    {child}
    sys.exit(0)
for _ in range(200):
    if os.waitpid(child, os.WNOHANG)[0]:
        print("child ended")
        break
    time.sleep(0.05)
else:
    os.kill(child, signal.SIGKILL)
    print("child hangs")
go_on.set()
assert np.array_equal(step.attend(0, q), want)
print("parent works")
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("end", (
    "pass", "del cache, step, sequence", "cache.close()",
    "step.plan([sequence], [0], [64]); assert np.array_equal(step.attend(0, q), want)"))
def test_a_forked_process_works_and_ends(end):
    """Although the library's threads are not in it."""
    assert python(FORK.format(child=end, hold=0)) == (0, "child ended\nparent works\n")


@needs_fork
def test_a_fork_while_another_thread_is_in_a_call():
    """The child has the locks, but not the thread that would open them."""
    assert python(FORK.format(child="cache._handles.exclusive().__enter__(); os._exit(0)",
                              hold=1)) == (0, "child ended\nparent works\n")


def test_threads_that_attend_while_the_process_ends():
    code = """
import threading, time
from test_cache import Q, aligned, cache, filled
c = cache(num_threads=2)
step, sequence = filled(c)

def work(room):
    while True:
        step.attend(0, Q, workspace=room)

for own in (True, True, False):
    room = aligned(c.workspace_bytes()) if own else None
    threading.Thread(target=work, args=(room,), daemon=True).start()
time.sleep(0.2)
print("done", flush=True)
"""
    status, text = python(code)
    # The threads may print that their cache was closed, but neither crash nor hold the process.
    assert status == 0 and text.startswith("done\n"), text


INTERPRETERS = next((m for m in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(m)), None)


@pytest.mark.skipif(INTERPRETERS is None, reason="this Python has no sub-interpreters")
@pytest.mark.parametrize("last", ("", "raise RuntimeError('dies')"))
def test_a_forgotten_sub_interpreter(last):
    """It is torn down with the process, when a call that lets go of the interpreter's lock ends the main
    thread: the library's threads, which take no signals, then were the whole process, and only SIGKILL ended
    it."""
    code = f"""
import {INTERPRETERS} as interpreters
code = '''
import array, tqkv
cache = tqkv.Cache(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=32, key_bits=4, value_bits=4,
                   max_tokens=32, num_threads=2)
step, sequence = cache.batch(), cache.sequence()
step.plan([sequence], [2])
step.append(0, array.array("f", range(64)), array.array("f", range(64)))
print("alive", flush=True)
{last}
'''
try:
    number = interpreters.create("legacy")
except TypeError:
    number = interpreters.create(isolated=False)
try:
    interpreters.run_string(number, code)
except Exception as error:
    assert "dies" in str(error), error
print("end", flush=True)
"""
    assert python(code, timeout=30) == (0, "alive\nend\n")
