"""What a command does with what it is stopped by."""

from collections.abc import Sequence

import pytest

from jaxbin.common import command_line


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]):
    def interrupted(_: Sequence[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        command_line.run(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
