"""Run Ray on this machine in a process and a session of its own, which end with the process that asked for it.

In a session of its own Ray gets no signal that is sent to the driver's process group, such as Ctrl-C: Ray must still be
there when the driver has its trials write a checkpoint. The other end of a pipe tells it when the driver is gone,
whatever ended that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from raysweep.records.machine import PROC, stat_of

END_S = 5.0
"""How long Ray may take to end by itself, before its processes are killed."""
KILL_S = 5.0
"""How long killed processes may take to end."""
ATTEMPTS = 3
"""How often it is tried to start Ray, whose parts give each other 30 s: a busy machine needs longer."""
WATCH_S = 0.5
"""Seconds between two looks at Ray's processes."""
STOPPED_S = 15.0
"""How long a central process may be stopped (SIGSTOP): it answers nobody, and all that asks it waits for ever."""
CENTRAL = ("raylet", "gcs_server")
"""Processes without which Ray cannot go on."""


class LocalRay:
    """A Ray of this process: `address`, `ended` and `end`.

    Args:
        options: for `ray.init`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raysweep.cluster.local_ray", json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._text = b""
        self._told: list[dict[str, str]] = []

    def address(self) -> str | None:
        """Return where it listens; None while it starts.

        Raises:
            RuntimeError: it could not be started.
        """
        for news in self._news():
            if "address" in news:
                return news["address"]
        reason = self.ended()
        if reason is not None:
            raise RuntimeError(reason)
        return None

    def ended(self) -> str | None:
        """Return which part of Ray has ended, or why none could be started; None while all work."""
        for news in self._news():
            if "ended" in news:
                return news["ended"]
        return None if self._process.poll() is None else "the process that ran Ray has ended"

    def end(self) -> None:
        """End Ray and wait for it; what does not end within `END_S` is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            pass
        # Also after an orderly end: a process that is stopped (SIGSTOP) hears nothing of it.
        end_session(self._process.pid)
        self._process.wait(END_S)
        self._process.stdout.close()

    def _news(self) -> list[dict[str, str]]:
        """Return all that it has told so far."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while not self._process.stdout.closed and select.select([pipe], [], [], 0)[0]:
            new = os.read(pipe, 65_536)
            if not new:
                break
            self._text += new
        *lines, self._text = self._text.split(b"\n")
        # Ray prints as well; only lines of JSON are ours.
        self._told += [json.loads(line) for line in lines if line.startswith(b"{")]
        return self._told


def end_session(leader: int, but: int | None = None) -> None:
    """Kill every process of a session (SIGKILL), `but` one. Linux; elsewhere, those of its process group."""
    if not PROC.is_dir():
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return
    deadline = time.monotonic() + KILL_S
    # Again and again: a process may start another one between the look and the kill, and takes a moment to end.
    while (left := [pid for pid in members(leader) if pid != but]) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def members(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (stat := stat_of(pid)) and stat[0] != "Z" and int(stat[3]) == leader]


def main() -> None:
    """Start Ray, say where, and wait until the driver has gone or a part of Ray has."""
    # The driver decides when to end.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init("local", **json.loads(sys.argv[1]))
            break
        # Ray raises plain exceptions of several kinds where a part of it does not answer in time.
        except Exception as error:
            ray.shutdown()
            if attempt == ATTEMPTS:
                tell(ended=" ".join(str(error).split())[:300] or type(error).__name__)
                return
    central = {pid: name for pid in members(os.getpid()) if (name := name_of(pid)) in CENTRAL}
    tell(address=ray.get_runtime_context().gcs_address)
    watch(central)
    ray.shutdown()
    if PROC.is_dir():
        # What is stopped did not hear of the end.
        end_session(os.getpid(), but=os.getpid())


def watch(central: dict[int, str]) -> None:
    """Wait until the driver has gone, or a central process has, or gives no answer; tell of the latter."""
    stopped_s = dict.fromkeys(central, 0.0)
    while not select.select([sys.stdin], [], [], WATCH_S)[0]:
        for pid, name in central.items():
            state = (stat_of(pid) or "Z")[0]
            stopped_s[pid] = stopped_s[pid] + WATCH_S if state == "T" else 0.0
            if state == "Z" or stopped_s[pid] >= STOPPED_S:
                tell(ended=f"Ray's {name} has ended" if state == "Z" else f"Ray's {name} is stopped (SIGSTOP)")
                return


def name_of(pid: int) -> str:
    """Return the name of a process; "" if it has ended."""
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def tell(**news: str) -> None:
    print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main()
