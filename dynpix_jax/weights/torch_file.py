"""PyTorch .pth/.pt files, which are zip files since torch 1.6; nothing in them is executed.

Memory is bounded by the file's size: entries must be stored (as `torch.save` does), a storage must have
exactly the bytes its element count says, and tensors are views of their storages.

Source: torch/serialization.py (`_save`, `_load`) of PyTorch 2.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import torch_pickle
from dynpix_jax.weights.torch_legacy import START, read_legacy


class _Archive:
    """The zip file behind the pickle: NAME/data.pkl, NAME/byteorder, NAME/data/KEY."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._zip = path, archive
        infos = archive.infolist()
        roots = [
            i.filename.removesuffix("data.pkl") for i in infos if i.filename.split("/")[1:] == ["data.pkl"]
        ]
        if len(roots) != 1:
            raise UserError(f"{path}: a zip file, but not of torch.save: {len(roots)} entries */data.pkl")
        self._root = roots[0]
        names = {info.filename for info in infos}
        if f"{self._root}constants.pkl" in names:
            raise UserError(f"{path}: a TorchScript program, not a file of weights; {torch_pickle.RESAVE}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: entry {info.filename} is compressed, which torch.save never does")
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise UserError(f"{path}: the entries claim more bytes than the file has: corrupt zip file")
        order = self.read("byteorder", 16) if f"{self._root}byteorder" in names else b"little"
        if order not in (b"little", b"big"):
            raise UserError(f"{path}: unknown byte order {order!r}")
        self._order: Literal["<", ">"] = "<" if order == b"little" else ">"
        self._storages: dict[tuple[str, str], np.ndarray] = {}

    def read(self, name: str, limit: int) -> bytes:
        try:
            info = self._zip.getinfo(self._root + name)
        except KeyError as error:
            raise UserError(f"{self._path}: entry {self._root}{name} is missing from the file") from error
        if info.file_size > limit:
            raise UserError(
                f"{self._path}: entry {info.filename} has {info.file_size} bytes, expected {limit} at most"
            )
        return self._zip.read(info)

    def elements(self, key: str, kind: str, numel: int) -> np.ndarray:
        """One storage, read and widened once however many tensors share it."""
        if (key, kind) not in self._storages:
            dtype = np.dtype(torch_pickle.STORAGES[kind]).newbyteorder(self._order)
            data = self.read(f"data/{key}", numel * dtype.itemsize)
            if len(data) != numel * dtype.itemsize:
                raise UserError(
                    f"{self._path}: storage {key} has {len(data)} bytes, expected {numel * dtype.itemsize} "
                    f"for {numel} elements of {kind}"
                )
            elements = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
            self._storages[key, kind] = torch_pickle.widened(elements, kind)
        return self._storages[key, kind]


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as opened:
        archive = _Archive(path, opened)
        data = archive.read("data.pkl", torch_pickle.MAX_PICKLE_BYTES)
        torch_pickle.scan(path, data)
        return torch_pickle.load(path, data, archive.elements)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, in the format of any torch since 0.1.11, by whatever name.

    Returns:
        Nested dicts, lists and scalars, with tensors as read-only arrays (bfloat16 widened to float32).

    Raises:
        UserError: TorchScript; a corrupt or truncated file; a pickle that asks for more than tensors, dicts,
            lists, tuples and scalars. It names the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        raise UserError(
            f"{path}: a tar file, the format of torch before 0.1.11, which is not read; re-save it with "
            f"torch: torch.save(torch.load({path.name!r}), 'new.pth')"
        )
    if not start.startswith((b"PK", START)):
        raise UserError(f"{path}: not a PyTorch file: neither a zip file nor torch's older format")
    try:
        root = _read_zip(path) if start.startswith(b"PK") else read_legacy(path)
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged pickle can raise anything from within the unpickler
        raise UserError(f"{path}: corrupt PyTorch file: {error or type(error).__name__}") from error
    return torch_pickle.plain(path, root)
