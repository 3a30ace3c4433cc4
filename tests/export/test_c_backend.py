"""`jaxbin.load(..., backend="c")`, its command, and `--output=NAME.c`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_programs import GCC, STRICT, ZIG, assert_same, run_program
from PIL import Image

import jaxbin
from jaxbin import data, predict
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export
from jaxbin.export import compiled, inference

DIGITS = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation

needs_gcc = pytest.mark.skipif(GCC is None, reason="no gcc")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "jaxbin" / "c"


@needs_gcc
def test_all_digits(cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = jaxbin.load("mnist_300", backend="c")
    prediction = model.predict(DIGITS.images)
    expected = jaxbin.load("mnist_300").predict(DIGITS.images)
    assert_same(prediction.logits, expected.logits)
    np.testing.assert_allclose(prediction.probabilities, expected.probabilities, atol=1e-5)
    assert prediction.names == expected.names
    assert_same(model.predict(DIGITS.images[3, ..., 0]).logits, expected.logits[3:4])
    with pytest.raises(UserError, match="images of float64 are not accepted"):
        model.predict(np.zeros((28, 28)))
    # Compiled once: the second time it comes from the cache.
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    monkeypatch.setattr(compiled, "_compile", None)
    again = jaxbin.load("mnist_300", backend="c").predict(DIGITS.images[:2])
    np.testing.assert_array_equal(again.logits, prediction.logits[:2])


@needs_gcc
def test_a_damaged_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_compile", lambda *arguments: arguments[2].write_bytes(b""))
    with pytest.raises(UserError, match=r"\.so cannot be used: .*file too short"):
        jaxbin.load("mnist_300", backend="c")


@needs_gcc
def test_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    digit = tmp_path / "digit.png"
    Image.fromarray(DIGITS.images[0, ..., 0]).save(digit)
    lines = []
    for backend in inference.BACKENDS:
        predict.main(["mnist_300", str(digit), "--json", f"--backend={backend}"])
        lines.append(json.loads(capsys.readouterr().out))
    assert lines[0]["name"] == lines[1]["name"]
    assert lines[0]["probabilities"] == pytest.approx(lines[1]["probabilities"], abs=1e-5)
    with pytest.raises(UserError, match="argument --backend: invalid choice: 'tpu'"):
        predict.main(["mnist_300", str(digit), "--backend=tpu"])


def test_backends_are_named():
    with pytest.raises(UserError, match="backend='tpu' is unknown; accepted: xla, c"):
        jaxbin.load("none", backend="tpu")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"backend='c' needs a C compiler, .* 'jaxbin\[c\]'"):
        jaxbin.load("mnist_300", backend="c")


def test_compilers_that_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "none/such -m64")
    with pytest.raises(UserError, match="compiler 'none/such' cannot be run: No such file"):
        jaxbin.load("mnist_300", backend="c")
    monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(3)'")
    with pytest.raises(UserError, match=r"compiler '.*' failed: exit status 3"):
        jaxbin.load("mnist_300", backend="c")


@pytest.mark.parametrize("given", ['"', "cc 'x", " "])
def test_what_is_no_command_of_a_compiler(monkeypatch: pytest.MonkeyPatch, given: str):
    monkeypatch.setenv("CC", given)
    with pytest.raises(UserError, match=f"CC=.*{given}.* is not accepted; accepted: a compiler's"):
        jaxbin.load("mnist_300", backend="c")


def test_zig_is_used_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    assert compiled.find_compiler() == [sys.executable, "-m", "ziglang", "cc", "-nostdlib"]


@needs_gcc
def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export.main(["--model=mnist_300", f"--output={tmp_path / 'digits.c'}"])
    told = capsys.readouterr().out
    source, header = ((tmp_path / f"digits.{kind}").read_text() for kind in "ch")
    assert "void digits_predict(const uint8_t *image, float *logits, void *scratch);" in header
    assert "#define DIGITS_SCRATCH_BYTES 13760\n" in header
    assert "#define DIGITS_CLASSES 10 " in header
    assert "validation_accuracy 0.9854" in source.split("*/")[0]
    assert "38,424 bytes of constants, 13,760 bytes of scratch memory" in told
    assert source.startswith("/* mlp300, 3 of 3 layers with weights of 1 bit; written by jaxbin.")
    (tmp_path / "main.c").write_text(
        """
        #include <stdio.h>
        #include "digits.h"
        int main(void)
        {
            static uint8_t image[DIGITS_IMAGE_BYTES];
            static float logits[DIGITS_CLASSES];
            static float scratch[DIGITS_SCRATCH_BYTES / 4];
            while (fread(image, 1, sizeof image, stdin) == sizeof image) {
                digits_predict(image, logits, scratch);
                fwrite(logits, 1, sizeof logits, stdout);
            }
            return 0;
        }
        """
    )
    (tmp_path / "net.c").write_text(source)
    logits = run_program([str(GCC), *STRICT, "-O2"], DIGITS.images[:50], tmp_path)
    assert_same(logits, jaxbin.load("mnist_300").predict(DIGITS.images[:50]).logits)


@pytest.mark.parametrize("name", ["3net.c", "my-net.c", "for.c", "ä.c", f"{'a' * 32}.c"])
def test_names(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be a name in C; accepted: a letter, then"):
        export.main(["--model=none", f"--output={tmp_path / name}"])


@pytest.mark.skipif(not ZIG, reason="no ziglang")
@pytest.mark.parametrize("target", ["aarch64", "riscv64", "thumb-freestanding-eabi"])
def test_other_processors_compile_it(target: str, tmp_path: Path):
    export.main(["--model=mnist_300", f"--output={tmp_path / 'net.c'}"])
    triple = target if "-" in target else f"{target}-linux-musl"
    flags = [*STRICT, "-O2", "-target", triple, "-c", "net.c"]
    subprocess.run([*(ZIG or ()), *flags], cwd=tmp_path, check=True)
