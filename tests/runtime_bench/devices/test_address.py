"""Only what is a device URL passes, and nothing that passes can be an option or mean anything to a shell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.profiles.errors import InputError
from bnas.runtime_bench import machine
from bnas.runtime_bench.devices.address import Address, parse

GOOD = {
    "local": Address("local", "local"),
    "emulator": Address("emulator", "here", True),
    "adb:": Address("adb:", "adb"),
    "adb:0123456789ABCDEF": Address("adb:0123456789ABCDEF", "adb", serial="0123456789ABCDEF"),
    "adb:192.168.1.7:5555": Address("adb:192.168.1.7:5555", "adb", serial="192.168.1.7:5555"),
    "ssh://board": Address("ssh://board", "ssh", host="board"),
    "ssh://pi@raspberrypi.local:2222": Address(
        "ssh://pi@raspberrypi.local:2222", "ssh", user="pi", host="raspberrypi.local", port=2222
    ),
    "ssh://pi@[fe80::1%eth0]:22": Address("ssh://pi@[fe80::1%eth0]:22", "ssh", user="pi", host="fe80::1%eth0", port=22),
    "emulator+ssh://u@h": Address("emulator+ssh://u@h", "ssh", True, "u", "h"),
}
BAD = [
    "", "ssh://", "ssh://-oProxyCommand=x", "ssh://a@-h", "ssh://-u@h", "ssh://u@h:", "ssh://u@h:0", "ssh://u@h:65536",
    "ssh://u@h:22/path", "ssh://u h", "ssh://u@h;id", "ssh://u@$(id)", "ssh://u@`id`", "ssh://u@h\n", "ssh://u'@h",
    "adb:-s", "adb:a b", "adb:$(id)", "adb:x;id", "adb:x\n", "emulator+adb:x", "emulator+local", "emulator+", "Local",
    "https://h", "cuda:0",
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_good_urls(url: str) -> None:
    assert parse(url) == GOOD[url]


@pytest.mark.parametrize("url", BAD)
def test_bad_urls_are_one_line(url: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(url)
    assert "\n" not in str(caught.value).replace(repr(url), "")


def test_a_forgotten_scheme_is_guessed() -> None:
    with pytest.raises(InputError, match=r"did you mean ssh://pi@kitchen\?"):
        parse("pi@kitchen")


@given(st.text(max_size=12), st.text(max_size=12))
def test_nothing_else_passes(user: str, host: str) -> None:
    for url in (f"ssh://{user}@{host}", f"adb:{host}", f"emulator+ssh://{host}"):
        try:
            found = parse(url)
        except InputError:
            continue
        for part in (found.user or "x", found.host or "x", found.serial or "x"):
            assert not part.startswith("-") and not set(part) & set(" \t\n'\"\\$`;&|<>(){}*?!#~=\0")


def test_cpu_lists() -> None:
    assert machine.cpu_list("0,2-4,3") == [0, 2, 3, 4] == machine.cpu_list([4, 3, 2, 0])
    for bad in ("", "a", "1-", "3-1", "-1", "1;2", "99999"):
        with pytest.raises(InputError, match="not numbers and ranges"):
            machine.cpu_list(bad)
