"""Writes imagenet2012 as a TFDS directory (array_record): in parallel, resumable, checked.

Every piece of the originals becomes one shard. A shard that has its final name is complete, so an
interrupted preparation goes on with the shards that are missing.
"""

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm
from PIL import Image

from jaxbin.common.errors import UserError
from jaxbin.data.imagenet.dataset import NAME
from jaxbin.data.imagenet.originals import Piece, find_pieces, read_piece
from jaxbin.data.imagenet.synsets import synsets
from jaxbin.data.specs import DatasetSpec

VERSION = "5.1.0"


def prepare_imagenet(
    spec: DatasetSpec,
    source: Path,
    data_dir: Path,
    *,
    workers: int,
    damaged_limit: int,
    partial: bool,
    report: Callable[[str], None],
) -> Path:
    """Writes `data_dir/imagenet2012/5.1.0` and returns it.

    Args:
      spec: whose sizes the originals must have.
      source: the folder of the original archives, or of the folders `train` and `val`.
      data_dir: the TFDS data directory.
      workers: processes; 0 for none but this one.
      damaged_limit: how many damaged images are left out before that is an error.
      partial: whether fewer images than published are accepted.
      report: takes messages.

    Raises:
      UserError: something is missing, or too much is damaged.
    """
    final = data_dir / NAME / VERSION
    if final.exists():
        raise UserError(f"{final} exists; remove it to prepare {NAME} again")
    pieces = find_pieces(source)
    unfinished = data_dir / NAME / f"{VERSION}.unfinished"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{unfinished} cannot be written: {error.strerror}") from None
    jobs = _jobs(pieces, unfinished)
    done = [result for job in jobs if (result := _finished(*job)) is not None]
    # Those that lack images are written again: the images may have been mended.
    done = [result for result in done if not result["damaged"]]
    if done:
        report(f"going on: {len(done):,} of {len(jobs):,} shards are there")
    results = _write_all(jobs, done, workers, damaged_limit, report)
    _check_counts(spec, results, partial, report)
    _write_metadata(unfinished, results)
    for path in unfinished.glob("*.shard.json"):
        path.unlink()
    unfinished.replace(final)
    return final


def _jobs(pieces: Sequence[Piece], folder: Path) -> list[tuple[Piece, Path]]:
    """Every piece with the path of its shard, named as TFDS names it."""
    jobs = []
    for split in ("train", "validation"):
        chosen = [piece for piece in pieces if piece.split == split]
        jobs += [
            (piece, folder / f"{NAME}-{split}.array_record-{index:05d}-of-{len(chosen):05d}")
            for index, piece in enumerate(chosen)
        ]
    return jobs


def _result_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".shard.json")


def _fingerprint(piece: Piece) -> str:
    return hashlib.sha256(repr(piece).encode()).hexdigest()


def _finished(piece: Piece, shard: Path) -> dict[str, Any] | None:
    """What `write_shard` returned in an earlier run, if it did so for this very piece."""
    try:
        result = json.loads(_result_path(shard).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = result["piece"] == _fingerprint(piece) and shard.is_file()
    return result if same and shard.stat().st_size == result["bytes"] else None


def _write_all(
    jobs: Sequence[tuple[Piece, Path]],
    done: list[dict[str, Any]],
    workers: int,
    damaged_limit: int,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Writes the shards that are missing; the results of all."""
    finished = {result["shard"] for result in done}
    missing = [job for job in jobs if job[1].name not in finished]
    results = list(done)
    damaged = sum(len(result["damaged"]) for result in done)
    with tqdm.tqdm(
        total=len(jobs), initial=len(done), unit="shard", disable=not sys.stderr.isatty()
    ) as bar:
        for result in _written(missing, workers):
            results.append(result)
            damaged += len(result["damaged"])
            bar.update()
            bar.set_postfix(images=sum(one["examples"] for one in results), damaged=damaged)
            for name in result["damaged"]:
                report(f"damaged, left out: {name}")
            if damaged > damaged_limit:
                raise UserError(
                    f"{damaged} images are damaged, the last {result['damaged'][-1]}; accepted: "
                    f"--damaged_limit={damaged_limit}"
                )
            if not bar.disable or len(results) % max(1, len(jobs) // 20):
                continue
            report(f"{len(results):,} of {len(jobs):,} shards")
    return sorted(results, key=lambda result: result["shard"])


def _written(jobs: Sequence[tuple[Piece, Path]], workers: int) -> Iterator[dict[str, Any]]:
    """Results in the order in which they come."""
    if not workers:
        yield from (write_shard(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        futures = [pool.submit(write_shard, *job) for job in jobs]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a worker process died, for want of memory perhaps (fewer --workers take less); "
            "the same command goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(piece: Piece, shard: Path) -> dict[str, Any]:
    """Writes the images of `piece` and returns what was written.

    The result's "damaged" names images that were left out, "converted" those that were not RGB or
    grey JPEG files and have become such.

    Raises:
      UserError: the originals cannot be read, or the shard cannot be written.
    """
    # Before the worker's first image, both take more than a second to import.
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = _features(tfds)
    serializer = ExampleSerializer(features.get_serialized_info())
    temporary = shard.with_name(shard.name + ".tmp")
    examples, damaged, converted = 0, [], []
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for name, label, content in read_piece(piece):
            image = checked_image(content)
            if image is None:
                damaged.append(name)
                continue
            if image is not content:
                converted.append(name)
            example = {"file_name": name, "image": io.BytesIO(image), "label": label}
            writer.write(serializer.serialize_example(features.encode_example(example)))
            examples += 1
        writer.close()
        if not examples:
            raise UserError(f"{piece.path}: all images of {piece.members[0].name} are damaged")
        result = {
            "shard": shard.name,
            "split": piece.split,
            "piece": _fingerprint(piece),
            "examples": examples,
            "bytes": temporary.stat().st_size,
            "damaged": damaged,
            "converted": converted,
        }
        _result_path(shard).write_text(json.dumps(result), encoding="utf-8")
        temporary.replace(shard)
    except OSError as error:
        where = error.filename or shard
        raise UserError(f"{where} cannot be read or written: {error.strerror}") from error
    return result


def checked_image(content: bytes) -> bytes | None:
    """The file if it is a whole RGB or grey JPEG, another that is, or None if it is damaged.

    ImageNet holds 22 CMYK JPEGs and one PNG, which TFDS converts too.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            image.load()  # every pixel: a file that is cut short fails here
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return content
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=100, subsampling=0)
            return file.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _features(tfds: Any) -> Any:
    """As TFDS has them."""
    return tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(synsets())),
        }
    )


def _check_counts(
    spec: DatasetSpec,
    results: Sequence[dict[str, Any]],
    partial: bool,
    report: Callable[[str], None],
) -> None:
    published = {"train": spec.train_examples, "validation": spec.validation_examples}
    for split, expected in published.items():
        chosen = [result for result in results if result["split"] == split]
        examples = sum(result["examples"] for result in chosen)
        damaged = sum(len(result["damaged"]) for result in chosen)
        converted = sum(len(result["converted"]) for result in chosen)
        report(
            f"{split}: {examples:,} images, {damaged:,} damaged and left out, "
            f"{converted:,} converted to RGB"
        )
        if examples + damaged != expected and not partial:
            raise UserError(
                f"{split} has {examples + damaged:,} images, {expected:,} were published; "
                "with --partial that is accepted"
            )


def _write_metadata(folder: Path, results: Sequence[dict[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(tfds),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[one["examples"] for one in results if one["split"] == split],
                num_bytes=sum(one["bytes"] for one in results if one["split"] == split),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=tfds.core.Path(folder),
                    dataset_name=NAME,
                    split=split,
                    filetype_suffix="array_record",
                ),
            )
            for split in ("train", "validation")
        ],
        version=VERSION,
        check_data=False,  # which needs TensorFlow
        description="ImageNet (ILSVRC 2012), prepared by jaxbin from the published files.",
        supervised_keys=("image", "label"),
    )
