"""Which devices a command measures on, and as which target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepack.devices.connect import ConnectOptions, places
from edgepack.errors import UsageError
from edgepack.targets.file import get_target

RPI4, RPI5 = get_target("rpi4"), get_target("rpi5")
HOSTED = replace(RPI4, hosts=("pi@one", "pi@two"))


def addresses(targets: list[object], options: ConnectOptions) -> list[tuple[str, str, str]]:
    return [(place.kind, place.address, place.target.name) for place in places(targets, options)]  # type: ignore[arg-type]


def test_without_a_word_it_is_this_machine() -> None:
    assert addresses([RPI4], ConnectOptions()) == [("local", "", "rpi4")]


def test_the_hosts_of_a_target_are_used() -> None:
    assert addresses([HOSTED], ConnectOptions()) == [("ssh", "pi@one", "rpi4"), ("ssh", "pi@two", "rpi4")]
    assert addresses([HOSTED], ConnectOptions(local=True)) == [("local", "", "rpi4")]
    assert addresses([HOSTED], ConnectOptions(hosts=("me@here",))) == [("ssh", "me@here", "rpi4")]


def test_one_target_for_all_or_one_for_each() -> None:
    both = ConnectOptions(hosts=("a", "b"), serials=("XYZ",))
    assert addresses([RPI4], both) == [("ssh", "a", "rpi4"), ("ssh", "b", "rpi4"), ("adb", "XYZ", "rpi4")]
    assert addresses([RPI4, RPI5, RPI4], both)[1] == ("ssh", "b", "rpi5")


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        ([RPI4, RPI5], ConnectOptions(hosts=("a", "b", "c")), "2 targets for 3 devices"),
        ([RPI4, RPI5], ConnectOptions(), "2 targets (rpi4, rpi5) for this machine; expected one"),
        ([RPI4], ConnectOptions(hosts=("a",), local=True), "--local excludes --host and --adb"),
        ([RPI4], ConnectOptions(hosts=("a", "a")), "a is named twice"),
    ],
)
def test_what_makes_no_sense(targets: list[object], options: ConnectOptions, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        addresses(targets, options)
    assert expected in caught.value.message
