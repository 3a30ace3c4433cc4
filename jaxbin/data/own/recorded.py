"""What a run's config.json holds of a dataset of the user's own, for when it is gone."""

import dataclasses
import json
from typing import Any

from jaxbin.common.checks import IMAGES, Check, check_fields, is_whole
from jaxbin.common.errors import UserError, shown
from jaxbin.data.specs import DatasetSpec

_COUNTS = ("train_examples", "validation_examples", "test_examples")
_DEFINES = ("image_shape", "class_names", *_COUNTS)

# A quarter of a level of 255: no two decoders differ by as much in the mean, other images do.
_SAME_NORMALIZATION = 1e-3


def to_json(spec: DatasetSpec) -> dict[str, Any]:
    """All of a spec but its name, as `from_json` takes it."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    del content["name"], content["classes"]
    return content


def from_json(name: str, content: Any) -> DatasetSpec:
    """The spec of a run's dataset.

    Raises:
      UserError: it is none.
    """
    check_fields(content, "dataset_spec", _ACCEPTED)
    shape, class_names = content["image_shape"], content["class_names"]
    if not len(content["mean"]) == len(content["std"]) == shape[2]:
        raise UserError("dataset_spec has not as many means and deviations as channels")
    return DatasetSpec(
        name=name,
        image_shape=(shape[0], shape[1], shape[2]),
        classes=len(class_names),
        class_names=tuple(class_names),
        mean=tuple(map(float, content["mean"])),
        std=tuple(map(float, content["std"])),
        **{count: content[count] for count in _COUNTS},
        content=_content(content),
    )


def _content(content: dict[str, Any]) -> str:
    """What earlier versions did not record."""
    told = content.get("content", "")
    if not isinstance(told, str):
        raise UserError(f"dataset_spec has content={shown(told)}")
    return told


def differences(there: DatasetSpec, here: DatasetSpec) -> list[str]:
    """What differs between a dataset as it was and as it is, of what both know."""
    found = [
        f"{name} ({shown(getattr(there, name))} there, {shown(getattr(here, name))} here)"
        for name in _DEFINES
        if getattr(there, name) != getattr(here, name)
    ]
    if not found and there.content and here.content and there.content != here.content:
        found.append("which examples it has, or their labels or order")
    if not found and there.mean and here.mean:
        pairs = zip((*there.mean, *there.std), (*here.mean, *here.std), strict=True)
        if any(abs(one - other) > _SAME_NORMALIZATION for one, other in pairs):
            found.append(f"its images' mean ({shown(there.mean)} there, {shown(here.mean)} here)")
    return found


_ACCEPTED = {
    **IMAGES,
    **dict.fromkeys(_COUNTS, Check("a whole number >= 1", lambda value: is_whole(value, 1, 2**40))),
}
