"""Tensors by name from the files in which pretrained weights are published."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.caffe_file import read_caffemodel
from dynpix_jax.weights.matconvnet_file import read_matconvnet
from dynpix_jax.weights.network_file import Convention, NetworkFile
from dynpix_jax.weights.precision import restored
from dynpix_jax.weights.torch_file import read_torch

FORMAT = "dynpix_jax 1"
"""Entry ``format`` in the header of our own files."""
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pth.tar", ".pkl", ".mat", ".caffemodel")
# Keys under which training programs put the state dict, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_NPZ_BYTES = 16 * 2**30  # .npz entries may be compressed: a bound on what a small file can unpack to
_MAX_LEAVES = 1_000_000
_MAX_DEPTH = 16
_SAFETENSORS_DTYPES = frozenset(
    ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
)


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: corrupt or truncated .safetensors file: {reason}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata of a .safetensors file, {} if it has none; the header alone is read.

    Raises:
        UserError: The file is damaged.
    """
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors file by name; bfloat16, and what our own files store smaller, as float32.

    Raises:
        UserError: The file is damaged, or a tensor is of a kind that no weights have.
    """
    tensors = {}
    with _open_safetensors(path) as file:
        for name in file.offset_keys():
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS_DTYPES:
                raise UserError(f"{path}: tensor {name}: dtype {dtype} is not one of weights")
            array = file.get_tensor(name)
            tensors[name] = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    if read_metadata(path).get("format") != FORMAT:
        return tensors
    try:
        return restored(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file, numbers and booleans only.

    Raises:
        UserError: The file is damaged, unpacks to more than a limit, or holds something else. Pickled objects
            are refused and never loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _MAX_NPZ_BYTES:
            raise UserError(f"{path}: unpacks to {size} bytes, more than the limit of {_MAX_NPZ_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            tensors = {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on damaged files
        raise UserError(f"{path}: corrupt .npz file: {error or type(error).__name__}") from error
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise UserError(f"{path}: entry {name} is not an array of numbers")
    return tensors


def _flatten(path: Path, root: Any) -> dict[str, np.ndarray]:
    """Tensors of nested dicts and lists by dotted name; scalars and strings (epoch, ...) are left behind."""
    tensors: dict[str, np.ndarray] = {}
    pending, visited = [("", root, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        visited += 1
        if visited > _MAX_LEAVES or depth > _MAX_DEPTH:
            raise UserError(f"{path}: nested too deeply or too widely to be a file of weights")
        if isinstance(value, np.ndarray):
            if name in tensors:
                raise UserError(f"{path}: two tensors are both named {name!r}")
            tensors[name] = value
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            # Reversed because the stack pops from its end: tensors come out in the file's order.
            children = [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in items]
            pending.extend(reversed(children))
    return tensors


def _unwrap(root: Any) -> Any:
    """The state dict inside a training program's checkpoint."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(root, dict):
            break
        inner = [root[key] for key in _WRAPPERS if isinstance(root.get(key), dict)]
        if not inner:
            break
        root = inner[0]
    return root


def _drop_module_prefix(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`torch.nn.DataParallel` puts `module.` before every name."""
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        short = name.removeprefix("module.")
        if short in result:
            raise UserError(f"{path}: tensors {short!r} and 'module.{short}' have the same name")
        result[short] = array
    return result


def read_network(path: str | os.PathLike[str]) -> NetworkFile:
    """Tensors by name and the convention of a weights file of any supported kind.

    Args:
        path: .safetensors, .npz, PyTorch's (.pth, .pt, .pth.tar, .pkl), MatConvNet's .mat, or .caffemodel.

    Returns:
        Names are as in the file, without `module.` prefixes; of a PyTorch checkpoint, the state dict inside.
        bfloat16 becomes float32, other dtypes stay. Arrays may be read-only views. Convention and
        convolutions hold what the file says.

    Raises:
        UserError: Names the file and what is wrong.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise UserError(f"{path}: weights file of unknown kind; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if name.endswith(".safetensors"):
            network = NetworkFile(read_safetensors(path), Convention())
        elif name.endswith(".npz"):
            network = NetworkFile(read_npz(path), Convention())
        elif name.endswith(".mat"):
            network = read_matconvnet(path)
        elif name.endswith(".caffemodel"):
            network = read_caffemodel(path)
        else:
            tensors = _flatten(path, _unwrap(read_torch(path)))
            network = NetworkFile(tensors, Convention(kernel_axes="OIHW"), format="torch")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not network.tensors:
        raise UserError(f"{path}: holds no tensors")
    return dataclasses.replace(network, tensors=_drop_module_prefix(path, network.tensors))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of `read_network` alone."""
    return read_network(path).tensors
