"""One process makes a result at a time: two takers, dead holders, other hosts, clocks that disagree."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from scalpel.artifact import lease as module
from scalpel.artifact.lease import Held, holders, lease

CONTEXT = multiprocessing.get_context("spawn")
OTHER = {"host": "gpu7", "pid": 1, "started": "1", "job": None, "holds": True}


def foreign(directory, token="f" * 32, age=0.0, **changed):
    """A lease of another host, renewed `age` seconds ago."""
    path = directory / f"lease.{token}.json"
    path.write_text(json.dumps(OTHER | changed))
    os.utime(path, (time.time() - age,) * 2)
    return path


def hold(directory, ready, done):
    with lease(directory):
        ready.set()
        done.wait(20)


def test_a_second_start_is_refused_at_once_and_a_dead_one_s_place_is_taken(tmp_path):
    ready, done = CONTEXT.Event(), CONTEXT.Event()
    holder = CONTEXT.Process(target=hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(20)
    assert [found.pid for found in holders(tmp_path)] == [holder.pid]
    before = time.monotonic()
    with pytest.raises(Held, match=f"being made by process {holder.pid}"), lease(tmp_path):
        pass
    assert time.monotonic() - before < 3
    assert len(list(tmp_path.iterdir())) == 1, "the refused start leaves nothing"
    holder.kill()
    holder.join()
    with lease(tmp_path):
        assert [found.pid for found in holders(tmp_path)] == [os.getpid()]
    assert not list(tmp_path.iterdir())


def test_a_killed_process_that_nobody_waited_for_holds_nothing(tmp_path):
    """As when the terminal is killed: its children are dead and stay listed until somebody asks for their status."""
    ready, done = CONTEXT.Event(), CONTEXT.Event()
    holder = CONTEXT.Process(target=hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(20)
    os.kill(holder.pid, signal.SIGKILL)
    while " Z " not in Path(f"/proc/{holder.pid}/stat").read_text():
        time.sleep(0.01)
    with lease(tmp_path):
        assert [found.pid for found in holders(tmp_path)] == [os.getpid()]
    holder.join()


def test_a_lease_of_another_host_counts_until_its_heartbeat_stops(tmp_path):
    path = foreign(tmp_path, job="4711")
    with pytest.raises(Held, match="process 1 on gpu7, SLURM job 4711"), lease(tmp_path):
        pass
    foreign(tmp_path, age=module.STALE_SECONDS + 1)
    with lease(tmp_path):
        assert not path.exists()


def test_this_very_job_queued_again_on_another_node_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    foreign(tmp_path, job="4711")
    with lease(tmp_path):
        pass


def test_a_lease_dated_in_the_future_counts_as_long_as_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 1.0)
    foreign(tmp_path, age=-3600)
    with lease(tmp_path):
        pass
    path = foreign(tmp_path, age=-3600)
    written = path.stat().st_mtime_ns
    renewing = CONTEXT.Process(target=renew, args=(path,))
    renewing.start()
    try:
        while path.stat().st_mtime_ns == written:
            time.sleep(0.05)
        with pytest.raises(Held), lease(tmp_path):
            pass
    finally:
        renewing.kill()


def renew(path):
    while True:
        os.utime(path, (time.time() + 3600,) * 2)
        time.sleep(0.2)


def take_slowly(directory, ready, proceed, outcome):
    """A taker that stops between judging the leases and taking the directory."""
    judged = module._others

    def paused(*arguments):
        found = judged(*arguments)
        if not ready.is_set():
            ready.set()
            proceed.wait(20)
        return found

    module._others = paused
    try:
        with lease(directory):
            outcome.put(("held", os.getpid()))
            time.sleep(1.0)
    except Held:
        outcome.put(("refused", os.getpid()))


def test_of_two_takers_one_wins_when_the_other_takes_over_between_judging_and_taking(tmp_path):
    """Both see the same dead lease; the second takes over while the first has judged and not yet taken.

    The old lease moved whatever lay there aside, the second's live lease included.
    """
    foreign(tmp_path, age=module.STALE_SECONDS + 1)
    ready, proceed, outcome = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Queue()
    first = CONTEXT.Process(target=take_slowly, args=(tmp_path, ready, proceed, outcome))
    first.start()
    assert ready.wait(20)
    try:
        with lease(tmp_path):
            proceed.set()
            assert outcome.get(timeout=20) == ("refused", first.pid)
            assert [found.pid for found in holders(tmp_path)] == [os.getpid()]
    except Held:  # the first announced itself before this process looked: then it must hold
        proceed.set()
        assert outcome.get(timeout=20) == ("held", first.pid)
    first.join()


def crowd(directory, start, seconds, counts):
    """Take the directory again and again; whoever holds it must be alone."""
    start.wait(20)
    end, held, clashes = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            with lease(directory):
                held += 1
                try:
                    os.close(os.open(directory / "alone", os.O_CREAT | os.O_EXCL))
                    time.sleep(0.002)
                    os.unlink(directory / "alone")
                except FileExistsError:
                    clashes += 1
        except Held:
            time.sleep(0.001)
    counts.put((held, clashes))


def test_a_crowd_of_takers_never_holds_twice(tmp_path, monkeypatch):
    start, counts = CONTEXT.Event(), CONTEXT.Queue()
    takers = [CONTEXT.Process(target=crowd, args=(tmp_path, start, 4.0, counts)) for _ in range(5)]
    for taker in takers:
        taker.start()
    start.set()
    found = [counts.get(timeout=60) for _ in takers]
    for taker in takers:
        taker.join()
    assert sum(clashes for _, clashes in found) == 0 and sum(held for held, _ in found) > 5
    print(f"{sum(held for held, _ in found)} times taken by {len(takers)} processes, never by two at once")


def test_a_holder_that_was_stopped_too_long_ends_when_it_wakes(tmp_path):
    ready, done = CONTEXT.Event(), CONTEXT.Event()
    holder = CONTEXT.Process(target=hold_with_a_fast_heart, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(20)
    os.kill(holder.pid, signal.SIGSTOP)
    for path in tmp_path.glob(
        "lease.*.json"
    ):  # as another host does, which cannot see that the process is only stopped
        path.unlink()
    os.kill(holder.pid, signal.SIGCONT)
    holder.join(20)
    assert holder.exitcode == 2


def hold_with_a_fast_heart(directory, ready, done):
    module.HEARTBEAT_SECONDS = 0.2
    hold(directory, ready, done)
