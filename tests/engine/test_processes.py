"""How several processes find one another."""

import pytest

from jaxbin.common.errors import UserError
from jaxbin.engine import processes


@pytest.mark.parametrize("coordinator", ["nonsense", "host:", "host:0", "host:65536", "a b:1"])
def test_addresses_that_are_none(coordinator: str):
    with pytest.raises(UserError, match="accepted: HOST:PORT, a port from 1 to 65535"):
        processes.start(coordinator, 2, 0)
