"""Packed data sets: any source in ArrayRecord shards, as `dynpix prepare` writes them.

Layout: ROOT/SPLIT/manifest.json and ROOT/SPLIT/shard-00000.array_record, ... A record is one element, an .npz
archive without compression (ArrayRecord compresses it). The manifest tells what was packed, with which
options, the element's fields and names, and of each shard its elements, size and SHA-256 digest. If the
source has `annotators` (BSDS500), which the benchmark scores against, the records hold these besides.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import from_config, refuse_unread, to_json, unread_names
from dynpix_jax.core.source import Element, FieldSpec, SourceSettings, SourceSpec, check_index
from dynpix_jax.core.text import local_path, parse_json
from dynpix_jax.data.sources import SOURCES

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader

# Those that sources have; `dynpix prepare` writes the ones that the source packed has.
SPLITS = ("train", "trainaug", "val", "trainval", "test")
MANIFEST = "manifest.json"
FORMAT = 1
# Name of the array in a record that holds them, bool (N, H, W); not a field of the element.
ANNOTATORS = "annotators"
WHERE_TO_GET = "make it with dynpix prepare"
REPAIR = "run dynpix prepare again, which makes only that shard"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its name, the number of its first element, how many, its size in bytes, its SHA-256."""

    file: str
    first: int
    count: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a folder of shards.

    Attributes:
        source: The config section that the source was built from.
        split: The source's split.
        spec: Declares its elements.
        names: Names of the elements, in order.
        annotated: Whether the records hold the annotators' boundaries.
    """

    source: dict[str, Any]
    split: str
    spec: SourceSpec
    names: tuple[str, ...]
    annotated: bool
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The file's text."""
        return with_checksum({"format": FORMAT, **dataclasses.asdict(self)})


def with_checksum(content: Mapping[str, Any]) -> str:
    """A manifest's text: JSON with a CRC-32 of its own."""
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1)


def checked(text: str) -> dict[str, Any]:
    """What a manifest's text says; a ValueError if its checksum is wrong. Older ones have none."""
    content = parse_json(text)
    if content.pop("checksum", None) not in (None, _checksum(content)):
        raise ValueError("wrong checksum")
    known: dict[str, Any] = content
    return known


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; a UserError if it has none, or one that cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"packed: file not found: {path.absolute()}; {WHERE_TO_GET}")
    try:
        content = checked(path.read_text())
        if content["format"] != FORMAT:
            raise UserError(f"packed: {path} has format {content['format']}; expected {FORMAT}")
        spec = content["spec"]
        fields = {name: _field(field) for name, field in spec["fields"].items()}
        shards = tuple(Shard(**shard) for shard in content["shards"])
        names = tuple(content["names"])
        _check_counts(names, shards)
        return Manifest(
            source=content["source"],
            split=content["split"],
            spec=SourceSpec(spec["name"], fields, spec["licence"]),
            names=names,
            annotated=content["annotated"],
            shards=shards,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"packed: {path} is no manifest ({type(error).__name__}: {error}); {WHERE_TO_GET}"
        ) from None


def _check_counts(names: Sequence[str], shards: Sequence[Shard]) -> None:
    """A ValueError unless the shards, one after the other, hold as many elements as there are names."""
    first = 0
    for shard in shards:
        if shard.first != first or shard.count < 1:
            raise ValueError(f"{shard.file} begins at {shard.first}, expected {first}")
        first += shard.count
    if first != len(names) or not names:
        raise ValueError(f"{len(names)} names of {first} elements")


def _field(values: Mapping[str, Any]) -> FieldSpec:
    """A FieldSpec from JSON, which has lists for tuples."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    return FieldSpec(**{name: tuples(value) for name, value in values.items()})


def verify(folder: Path, progress: Callable[[str], None] = lambda file: None) -> Manifest:
    """Reads every shard of a folder and compares its digest; gives the manifest.

    Args:
        progress: Called with the name of each shard that is right.

    Raises:
        UserError: A shard that is missing or not as it was written, by name.
    """
    # Here, since `dynpix prepare --help` does without the extra `train`.
    from array_record.python.array_record_module import ArrayRecordReader

    manifest = read_manifest(folder)
    for shard in manifest.shards:
        check_size(folder, shard)
        if file_digest(folder / shard.file) != shard.sha256:
            raise UserError(
                f"packed: {folder / shard.file} is damaged: its SHA-256 is not that of {MANIFEST}; {REPAIR}"
            )
        held = ArrayRecordReader(str(folder / shard.file)).num_records()
        if held != shard.count:
            raise UserError(
                f"packed: {folder / shard.file} holds {held} elements, {MANIFEST} says {shard.count}"
            )
        progress(shard.file)
    return manifest


def check_size(folder: Path, shard: Shard) -> None:
    """A UserError if the shard's file is missing or has another size than it was written with."""
    path = folder / shard.file
    if not path.is_file():
        raise UserError(f"packed: shard not found: {path.absolute()}; run dynpix prepare again to make it")
    if path.stat().st_size != shard.size:
        raise UserError(
            f"packed: {path} is damaged: {path.stat().st_size} bytes, expected {shard.size}; {REPAIR}"
        )


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file is there as it was written."""
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.size and file_digest(path) == shard.sha256


def _check_options(folder: Path, packed: Mapping[str, Any], expected: PackedConfig) -> None:
    """Raises UserError unless the source was packed, with the options, given or its defaults."""
    if expected.of and packed["name"] != expected.of:
        raise UserError(f"packed: {folder} was made of {packed['name']}, expected {expected.of}")
    config = SOURCES.resolve(packed["name"], f"{folder / MANIFEST}: source.name").Config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in expected.options.items():
        known = packed[name] if name in packed else defaults.get(name)
        # As JSON: in the manifest tuples have become lists.
        if json.dumps(known) != json.dumps(value):
            raise UserError(
                f"packed: {folder} was made with {name}={known!r}, expected {value!r}; {WHERE_TO_GET} "
                f"--set {name}={value}"
            )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(element: Element) -> bytes:
    """An element as a record; equal elements give equal bytes."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in element.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def decode(record: bytes, names: tuple[str, ...]) -> Element:
    """The arrays `names` of a record. Raises ValueError, zipfile.BadZipFile or KeyError for a broken one."""
    with np.load(io.BytesIO(record), allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


@dataclasses.dataclass(frozen=True)
class PackedConfig:
    """Options of the source.

    Attributes:
        root: The folder that `dynpix prepare` wrote, which holds a folder for each split.
        fields: The labels to read; () for all that were packed.
        of: Name of the source that was packed; "" takes any.
        options: Options that it must have been packed with, such as {"depth": "filled"}, and the defaults of
            the others that its fields depend on, except for places.
        verify: Compare the digests of all shards before the first element, which reads them once from end to
            end. Without, a damaged element is found when it is read.
    """

    root: str
    fields: tuple[str, ...] = ()
    of: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verify: bool = False

    @classmethod
    def of_split(cls, section: Mapping[str, Any], split: str, path: str) -> PackedConfig:
        """The options in a section; those of the source that was packed are parsed as such."""
        config = from_config(cls, section, path)
        if not config.of:
            if config.options:
                raise UserError(f"{path}.of: missing; options need the name of the source that was packed")
            return config
        kind = SOURCES.resolve(config.of, f"{path}.of").Config
        fields = {field.name: field for field in dataclasses.fields(kind)}
        shared = {"root": config.root} | ({"fields": config.fields} if config.fields else {})
        shared = {name: value for name, value in shared.items() if name in fields}
        typed = from_config(kind, {**config.options, **shared}, f"{path}.options")
        unread = SourceSettings(config.of, split, typed).unread_in_split
        refuse_unread(typed, f"{path}.options", unread)
        places = {name for name, field in fields.items() if field.metadata.get("place")}
        others = {"root", "fields", *places, *unread, *unread_names(typed)}
        read = {name: to_json(getattr(typed, name)) for name in fields if name not in others}
        return dataclasses.replace(config, options=read)


class Packed:
    """The elements of the source that was packed, byte for byte; its spec and its names too."""

    Config = PackedConfig
    splits = SPLITS

    def __init__(self, config: PackedConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"packed has no split {split!r}; {suggest(split, SPLITS)}")
        self._folder = local_path(config.root) / split
        self._manifest = verify(self._folder) if config.verify else read_manifest(self._folder)
        _check_options(self._folder, self._manifest.source, config)
        spec = self._manifest.spec
        for field in config.fields:
            if field not in spec.labels:
                raise UserError(
                    f"packed: {self._folder} has no label {field!r}; {suggest(field, spec.labels)}"
                )
        dropped = tuple(name for name in spec.labels if config.fields and name not in config.fields)
        self._spec = spec.without(dropped)
        for shard in self._manifest.shards:
            check_size(self._folder, shard)
        self._firsts = [shard.first for shard in self._manifest.shards]
        self._readers: dict[int, ArrayRecordReader] = {}

    @property
    def spec(self) -> SourceSpec:
        """The spec of the source that was packed, less the labels not asked for."""
        return self._spec

    def __len__(self) -> int:
        return len(self._manifest.names)

    def name(self, index: int) -> str:
        """The element's name in the source that was packed."""
        return self._manifest.names[check_index(self, index)]

    def mark(self, index: int) -> str:
        """The digest of its shard."""
        return self._manifest.shards[self._shard(index)].sha256

    def __getitem__(self, index: int) -> Element:
        return self.read(index, tuple(self._spec.fields))

    def read(self, index: int, names: tuple[str, ...]) -> Element:
        """The arrays `names` of the record of element `index`."""
        index = check_index(self, index)
        number = self._shard(index)
        shard = self._manifest.shards[number]
        try:
            (record,) = self._reader(number).read([index - shard.first])
            return decode(record, names)
        # ArrayRecord raises whatever its parser meets; a record that it gives is checked by its zip's CRC.
        except (
            RuntimeError,
            ValueError,
            IndexError,
            KeyError,
            EOFError,
            OSError,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(
                f"packed: {self._folder / shard.file} is damaged: element {index} ({self.name(index)}) "
                f"cannot be read ({type(error).__name__}); {REPAIR}"
            ) from None

    def _shard(self, index: int) -> int:
        return bisect.bisect_right(self._firsts, index) - 1

    def annotators(self, index: int) -> list[np.ndarray] | None:
        """Each annotator's boundaries, bool (H, W); None where the source packed has none."""
        return list(self.read(index, (ANNOTATORS,))[ANNOTATORS]) if self._manifest.annotated else None

    def _reader(self, number: int) -> ArrayRecordReader:
        from array_record.python.array_record_module import ArrayRecordReader

        # Readers may be shared by threads; two that open one at the same time are no harm.
        if number not in self._readers:
            path = self._folder / self._manifest.shards[number].file
            self._readers[number] = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        return self._readers[number]

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves.
        return self.__dict__ | {"_readers": {}}
