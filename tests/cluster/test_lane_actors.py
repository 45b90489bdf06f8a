"""A lane that is lost is started anew, as long as that is of use; without any lane left the session ends."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from raysweep.cluster.lane_actors import LaneActors
from raysweep.errors import ClusterError


class World:
    """Lanes, the mailbox and Ray as `LaneActors` sees them; notes what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.returned: dict[str, Exception | None] = {}
        """What the newest actor of a lane has ended with."""
        self.made = 0
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "kill", lambda actor: self.done.append(("kill", actor.name)))
        monkeypatch.setattr(ray.util, "remove_placement_group", lambda group: self.done.append(("remove", group)))

    def make(self, lane: str) -> Actor:
        self.made += 1
        self.returned.pop(lane, None)
        return Actor(lane)

    def wait(self, calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [call for call in calls if call.lane in self.returned], []

    def get(self, call: Any) -> None:
        error = self.returned[call.lane]
        if error is not None:
            raise error

    def answer(self, call: Any) -> Any:
        self.done.append(call)
        return f"group of {call[1]}" if call[0] == "placement_of" else None

    def __getattr__(self, name: str) -> Any:
        return Method(name)


class Method:
    def __init__(self, name: str) -> None:
        self.name = name

    def remote(self, *given: Any) -> tuple[Any, ...]:
        return (self.name, *given)


class Actor:
    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def join(self) -> Actor:
        return self

    def remote(self) -> Call:
        return Call(self.name)


class Call:
    def __init__(self, lane: str) -> None:
        self.lane = lane


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def lanes_of(world: World, number: int) -> LaneActors:
    lanes = LaneActors([f"lane-{n}" for n in range(number)], world.make, world, world, max_losses=2)  # type: ignore[arg-type]
    lanes.start()
    world.done.clear()
    return lanes


def test_a_lane_whose_actor_dies_is_replaced_and_its_trial_handed_back_before(world: World) -> None:
    lanes = lanes_of(world, 2)
    world.returned["lane-1"] = ray.exceptions.ActorDiedError()
    lanes.look()
    assert world.done == [
        ("kill", "lane-1"), ("placement_of", "lane-1"), ("remove", "group of lane-1"), ("lane_lost", "lane-1"),
        ("lane_begun", "lane-1"),
    ]  # fmt: skip
    assert world.made == 3
    world.done.clear()
    lanes.look()
    assert world.done == []


def test_a_lane_that_returns_is_not_started_again(world: World) -> None:
    lanes = lanes_of(world, 1)
    world.returned["lane-0"] = None
    lanes.look()
    lanes.look()
    assert (world.made, world.done) == (1, [])


def test_losses_count_until_a_worker_group_comes_up(world: World) -> None:
    lanes = lanes_of(world, 2)
    for _ in range(5):
        lanes.replace("lane-0", "silent")
        lanes.came_up("lane-0")
    assert world.made == 7
    for _ in range(3):
        lanes.replace("lane-0", "silent")
    assert world.made == 9, "the third loss in a row is the last"
    assert world.done[-1] == ("lane_died", "lane-0", "silent")


def test_without_any_lane_left_the_session_ends_with_the_reason_and_no_trial_fails(world: World) -> None:
    lanes = lanes_of(world, 1)
    with pytest.raises(ClusterError, match="lane-0 was lost 3 times, at last because: no module named x"):
        for _ in range(3):
            lanes.replace("lane-0", "no module named x")
    assert not any(done[0] == "lane_died" for done in world.done)
