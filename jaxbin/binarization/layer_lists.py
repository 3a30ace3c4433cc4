"""Layers named in a configuration, by their names or numbers."""

from collections.abc import Sequence

from jaxbin.binarization.methods import SCALES
from jaxbin.common.errors import UserError, shown


def numbers(field: str, text: str, layer_names: Sequence[str]) -> tuple[int, ...]:
    """The layers of a list such as "conv1,20", each once, ascending.

    Args:
      field: of the configuration, for messages.
      text: names and numbers, separated by commas; "" for no layer.
      layer_names: names of layers 1..L.

    Raises:
      UserError: there is no such layer.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    return tuple(sorted({_number(field, text, item, layer_names) for item in items}))


def scales(text: str, layer_names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The scales of a list such as "dense=he,1=none", by the layers' names.

    Args:
      text: layers and scales; "" for none.
      layer_names: names of layers 1..L.

    Raises:
      UserError: there is no such layer or scale, or a layer has two.
    """
    found: dict[str, str] = {}
    for item in text.split(",") if text.strip() else []:
        layer, equals, scale = (part.strip() for part in item.partition("="))
        if not equals or scale not in SCALES:
            raise UserError(
                f"layer_scales={shown(text)}: {shown(item.strip())} is not accepted; accepted: "
                f"LAYER=SCALE with one of {', '.join(SCALES)}, as dense=he,1=none"
            )
        name = layer_names[_number("layer_scales", text, layer, layer_names) - 1]
        if name in found:
            raise UserError(f"layer_scales={shown(text)} has layer {name} twice")
        found[name] = scale
    return tuple(found.items())


def _number(field: str, text: str, layer: str, layer_names: Sequence[str]) -> int:
    number = int(layer) if layer.isascii() and layer.isdecimal() and len(layer) < 7 else 0
    numbered = 1 <= number <= len(layer_names)
    if layer in layer_names:
        named = list(layer_names).index(layer) + 1
        if numbered and number != named:
            raise UserError(
                f"{field}={shown(text)}: {shown(layer)} is layer {named} by its name and layer "
                f"{number} by its number; accepted: what is one layer"
            )
        return named
    if numbered:
        return number
    raise UserError(
        f"{field}={shown(text)}: {shown(layer)} is no layer; accepted: 1 to {len(layer_names)}, "
        f"{', '.join(layer_names[:3])}"
        + (f", …, {layer_names[-1]}" if len(layer_names) > 3 else "")
    )
