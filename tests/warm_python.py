"""A `python` that starts at once, for tests of many short commands.

Importing JAX takes seconds. Here one process has imported it and forks for every command; what the
shell finds as `python` hands that process its arguments, directory, environment and standard
files, and ends with the status that the fork ended with.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import compilations

# What commands import, but no command itself: it runs as `__main__`, and has not been imported yet.
IMPORTED = (
    *(
        "jaxbin.train",
        "jaxbin.export.freeze",
        "jaxbin.export.interchange",
        "jaxbin.sensitivity",
    ),
    *("jaxbin.data.imagenet.preparation", "jaxbin.common.command_line", "jaxbin.export.inference"),
    *("experiments.execution", "experiments.selection", "experiments.plots"),
    *("jax2onnx", "onnxruntime", "tensorflow_datasets", "grain"),
)

CLIENT = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"-"], [0, 1, 2])
    connection.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    connection.shutdown(socket.SHUT_WR)
    status = connection.recv(1)
sys.exit(status[0] if status else "python was killed")
"""


@contextlib.contextmanager
def warm_python(folder: Path, source: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The directory of a `python` to put first into PATH.

    Args:
      folder: an empty one for the purpose.
      source: the directory whose code is imported.
      environment: what JAX is to see of it when it is imported.
    """
    address, client = folder / "socket", folder / "bin" / "python"
    client.parent.mkdir()
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)), encoding="utf-8")
    client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, str(address), str(client)],
        cwd=source,
        env=environment | {"PYTHONPATH": str(source)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield client.parent
    finally:
        server.terminate()
        server.communicate()


def _serve(address: str, client: str) -> None:
    """Fork for every command, for ever."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # of an optional package
            importlib.import_module(name)
    compilations.share()
    compilations.collect_less_garbage()
    # What commands start is as quick as they are; what they would spawn they fork.
    sys.executable = client
    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _answer(connection)


def _answer(connection: socket.socket) -> None:
    """Run a command and send its status; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    content = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    arguments, directory, environment = json.loads(content)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        _run(arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([status]))
    os._exit(status)


def _run(arguments: list[str]) -> None:
    """`-m MODULE …`, `-c PROGRAM …` or `FILE …`, as Python runs them."""
    sys.orig_argv = ["python", *arguments]
    option, *others = arguments
    if option == "-m":
        sys.argv = others
        sys.path[0] = os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(others[0], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(option).parent)
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    _serve(*sys.argv[1:])
