# SPDX-License-Identifier: Apache-2.0
"""Operators and the package's own calls on one cache, from several threads: they wait for one another, and
never meet. Forked processes; exceptions of signals."""
import os
import signal
import threading
import time

import pytest
import torch
import tqkv
from rig import DEVICE, DIM, KV_HEADS, Q_HEADS, Step, numbers, same_bits

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="TQKV_TEST_DEVICE is not cpu")


def test_operators_wait_for_plans_and_plans_for_operators():
    """Plans of 1 and of 3 rows in turn: an operator sees one or the other, and says so if its tensors are of
    the other. "busy" would be the library's word for two calls at once."""
    step, stop, said, good = Step(tokens=1), threading.Event(), set(), [0]
    tensors = {n: (numbers(1, n, KV_HEADS, DIM), numbers(2, n, KV_HEADS, DIM), numbers(3, n, Q_HEADS, DIM))
               for n in (1, 3)}

    def run(n):
        k, v, q = tensors[n]
        while not stop.is_set():
            try:
                step.bound.append(0, k, v)
                step.bound.attend(0, q)
                good[0] += 1
            except RuntimeError as error:
                said.add(str(error).split(", expected")[0])

    threads = [threading.Thread(target=run, args=(n,)) for n in (1, 3)]
    for thread in threads:
        thread.start()
    until, plans = time.monotonic() + 0.7, 0
    while time.monotonic() < until:
        step.sequence.truncate(0)
        step.batch.plan([step.sequence], [1 + 2 * (plans % 2)])
        plans += 1
        time.sleep(0)
    stop.set()
    for thread in threads:
        thread.join()
    assert good[0] > 50 and plans > 50
    assert not any("busy" in text for text in said), said
    assert any("has shape [3, " in text for text in said) and any("has shape [1, " in text for text in said)


def test_closing_while_operators_run():
    for _ in range(20):
        step, ended = Step(tokens=64), []

        def run():
            q = step.q()
            try:
                while True:
                    step.bound.attend(0, q)
            except RuntimeError as error:
                ended.append(str(error))

        step.bound.append(0, *step.kv())
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.002)
        step.cache.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 2 and all("is closed, or was never bound" in text for text in ended), ended


def test_attends_with_workspaces_share_the_turn():
    step = Step(tokens=16)
    step.bound.append(0, *step.kv())
    expected = step.bound.attend(0, step.q())
    room = torch.zeros(step.cache.workspace_bytes() + 256, dtype=torch.uint8)
    room = room[-room.data_ptr() % 256:][:step.cache.workspace_bytes()]
    results = []

    def run(**options):
        for _ in range(30):
            results.append(step.batch.attend(0, step.q(), **options))
            results.append(step.bound.attend(0, step.q()))

    threads = [threading.Thread(target=run, kwargs=options) for options in ({}, {"workspace": room})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 120 and all(same_bits(result, expected) for result in results)


def test_a_forked_process():
    step = Step(tokens=8)
    step.bound.append(0, *step.kv())
    expected = step.bound.attend(0, step.q())
    with step.cache._handles.exclusive():  # as another thread's call would have it at the fork
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if same_bits(step.bound.attend(0, step.q()), expected) else 2
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert same_bits(step.bound.attend(0, step.q()), expected)


def test_an_exception_of_a_signal_leaves_no_turn():
    step = Step(tokens=8)
    step.bound.append(0, *step.kv())

    class Interrupt(Exception):
        pass

    def handler(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                # Python drops what a handler raises inside a finalizer: then the next alarm is the one.
                again = time.monotonic() + 0.02
                while time.monotonic() < again:
                    step.batch.attend(0, step.q())
            except Interrupt:
                interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20
    done = []
    thread = threading.Thread(target=lambda: done.append(step.bound.attend(0, step.q())), daemon=True)
    thread.start()
    thread.join(20)
    assert done and same_bits(done[0], step.batch.attend(0, step.q()))


def test_a_nested_call_is_busy():
    step = Step(tokens=2)
    with step.cache._handles.exclusive():
        with pytest.raises(RuntimeError, match="TQ_ERROR_INVALID_STATE: cache: busy: this thread"):
            step.bound.append(0, *step.kv())
    with pytest.raises(tqkv.InvalidState, match="busy"), step.cache._handles.exclusive():
        step.cache.memory()
