"""The page of a network, in a browser: what is drawn in it and dropped into it."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from c_programs import ZIG
from helpers import initialized
from PIL import Image
from refusals import refused

import jaxbin
from jaxbin import data
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export
from jaxbin.export import freeze, page
from jaxbin.networks import registry

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

NODE = shutil.which("node") or ""
DOCUMENT = (Path(page.__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")

_HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=300000")
_HEADLESS += ("--dump-dom",)

needs_zig = pytest.mark.skipif(not ZIG, reason="no ziglang")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")

# What a person does, and what the page then says.
_VISITOR = """
<script>
const pause = () => new Promise((resolve) => setTimeout(resolve, 5));
const answer = async (act) => {
  get("answer").textContent = "";
  await act();
  while (!get("answer").textContent) await pause();
  return get("answer").textContent;
};
const draw = async (strokes) => {
  get("clear").click();
  const box = field.getBoundingClientRect();
  const at = (kind, [x, y]) => field.dispatchEvent(new PointerEvent(kind,
    { bubbles: true, clientX: box.left + x, clientY: box.top + y }));
  for (const stroke of strokes) {
    at("pointerdown", stroke[0]);
    stroke.slice(1).forEach((point) => at("pointermove", point));
    at("pointerup", stroke.at(-1));
  }
  await pause();
  return answer(classifyDrawing);
};
const drop = (picture) => answer(() => {
  const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "picture.png", { type: "image/png" }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
});
(async () => {
  const told = { drawn: [], dropped: [], shares: [] };
  for (const picture of PICTURES) {
    told.dropped.push(await drop(picture));
    told.shares.push(rows.map((row) => row.querySelector(".share").textContent));
  }
  for (const strokes of DRAWINGS) told.drawn.push(await draw(strokes));
  const outcome = document.createElement("pre");
  outcome.id = "outcome";
  outcome.textContent = JSON.stringify(told);
  document.body.append(outcome);
})();
</script>
"""


def visit(network: bytes, pictures: np.ndarray, drawings: list, folder: Path) -> dict:
    """What the page says of pictures that are dropped into it and strokes that are drawn."""
    files = []
    for picture in pictures:
        content = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(content, "PNG")
        files.append(base64.b64encode(content.getvalue()).decode())
    files.append(base64.b64encode(b"no picture").decode())
    script = _VISITOR.replace("PICTURES", json.dumps(files))
    script = script.replace("DRAWINGS", json.dumps(drawings))
    path = folder / "page.html"
    path.write_text(network.decode().replace("</html>", f"{script}</html>"))
    result = subprocess.run(
        [CHROMIUM, *_HEADLESS, f"--user-data-dir={folder}/user", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found = re.search(r'<pre id="outcome">(.*?)</pre>', result.stdout)
    assert found, result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


# strokes as lists of points, in pixels of the field of 280 x 280
SEVEN = [[[80, 70], [140, 70], [205, 70], [180, 120], [150, 175], [125, 230]]]
CIRCLE = [[140 + 60 * np.cos(k / 4), 140 - 85 * np.sin(k / 4)] for k in range(27)]
ONE = [[[140, 60], [140, 140], [140, 220]]]


@needs_zig
@needs_chromium
def test_digits(tmp_path: Path):
    digits = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[::50]
    output = tmp_path / "digits.html"
    export.main(["--model=mnist_300", f"--output={output}"])
    told = visit(output.read_bytes(), digits, [SEVEN, [CIRCLE], ONE], tmp_path)
    prediction = jaxbin.load("mnist_300").predict(digits)
    assert len(digits) == 10
    assert told["dropped"] == [*prediction.names, "This file is no picture."]
    shares = np.array([[float(text.rstrip("%")) for text in row] for row in told["shares"][:-1]])
    np.testing.assert_allclose(shares, 100 * prediction.probabilities, atol=0.0501)
    assert told["drawn"] == ["7", "0", "1"]


@needs_zig
@pytest.mark.skipif(not NODE, reason="no Node.js")
def test_a_module_alone_computes_as_the_document_says(tmp_path: Path):
    (script,) = re.findall(r"^```js\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    (digit,) = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[:1]
    blank = re.search(r"new Uint8Array\(28 \* 28\)", script)
    assert blank
    script = script.replace(blank[0], f"new Uint8Array({json.dumps(digit.ravel().tolist())})")
    export.main(["--model=mnist_300", f"--output={tmp_path / 'mnist_300.wasm'}"])
    printed = subprocess.run(
        [NODE, "-e", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    logits = jaxbin.load("mnist_300").predict(digit).logits
    np.testing.assert_allclose([json.loads(printed)], logits, rtol=1e-5, atol=1e-5)


@needs_zig
def test_the_page_needs_nothing_else(tmp_path: Path):
    output = tmp_path / "digits.html"
    export.main(["--model=mnist_300", f"--output={output}"])
    content = output.read_text()
    export.main(["--model=mnist_300", f"--output={tmp_path / 'again.html'}"])
    assert content == (tmp_path / "again.html").read_text()
    assert len(content) < 90_000
    assert "http" not in content.replace("http-equiv", "")
    assert "src=" not in content
    assert "<title>mlp300: 266,200 weights of 1 bit in 33 kB</title>" in content


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_are_no_pictures(channels: int):
    network = registry.build("mlp300", 10)
    spec = dataclasses.replace(data.spec("mnist_5k"), image_shape=(4, 4, channels))
    spec = dataclasses.replace(spec, mean=(0.5,) * channels, std=(0.2,) * channels)
    variables = initialized(network, jnp.zeros((1, *spec.image_shape)), train=False)
    made = freeze.freeze_variables(network, variables, spec, network_name=("mlp300", 0))
    message = refused(lambda: page.to_html(made))
    assert f"of 1 or 3 channels, and the network's images have {channels}; accepted: " in message


def test_without_zig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(page, "ziglang", lambda: None)
    with pytest.raises(UserError, match=r"WebAssembly: pip install 'jaxbin\[c\]'"):
        export.main(["--model=mnist_300", f"--output={tmp_path / 'digits.html'}"])
