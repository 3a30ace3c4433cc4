"""How several processes find one another."""

import socket

import pytest

from jaxbin.common.errors import UserError
from jaxbin.engine import processes


@pytest.mark.parametrize("coordinator", ["nonsense", "host:", "host:0", "host:65536", "a b:1"])
def test_addresses_that_are_none(coordinator: str):
    with pytest.raises(UserError, match="accepted: HOST:PORT, a port from 1 to 65535"):
        processes.start(coordinator, 2, 0)


def test_a_first_process_that_does_not_answer_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        processes._wait_for("it", "127.0.0.1", port, 0)
    with pytest.raises(UserError, match=r"coordinator='it': process 0 does not answer \(.*refused"):
        processes._wait_for("it", "127.0.0.1", port, 0)
