"""Our own weights files: variables under flat names ("params/res2_1/conv1/kernel") in a .safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Variables
from dynpix_jax.weights.precision import Precision, reduced
from dynpix_jax.weights.readers import FORMAT, read_metadata, read_tensors

COLLECTIONS = ("params", "batch_stats")


def is_native(names: Mapping[str, object]) -> bool:
    """Whether these are our own flat names rather than another library's."""
    return any(name.startswith(tuple(f"{collection}/" for collection in COLLECTIONS)) for name in names)


def write_weights(
    path: str | os.PathLike[str],
    variables: Variables,
    metadata: Mapping[str, str] | None = None,
    precision: Precision = "float32",
) -> None:
    """Writes nested variables as one .safetensors file, which appears whole or not at all.

    Args:
        path: The file; missing folders above it are made.
        variables: {"params": ..., "batch_stats": ...}.
        metadata: For the file's header; :func:`read_weights` compares its entry "architecture".
        precision: Of the kernels (`weights.precision`); vectors stay as they are.

    Raises:
        UserError: The path has another suffix or cannot be written; an unknown precision, or one that does
            not hold a value.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors; the name must end so")
    # The package writes an array's memory as it lies: it must be contiguous.
    tensors = {
        name: np.asarray(leaf, order="C")
        for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    try:
        tensors = reduced(tensors, precision)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    content = save(tensors, {"format": FORMAT, **(metadata or {})})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_architecture(path: str | os.PathLike[str], architecture: str) -> None:
    """Refuses a file whose metadata name another architecture, by a UserError."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return
    found = read_metadata(path).get("architecture", architecture)
    if found != architecture:
        raise UserError(f"{path}: weights of {found}, expected {architecture}")


def read_weights(path: str | os.PathLike[str], architecture: str | None = None) -> dict[str, Any]:
    """Nested variables of a file of our flat names.

    Args:
        path: .safetensors of :func:`write_weights`, or .npz.
        architecture: Required architecture, if the file names one; None for any.

    Raises:
        UserError: The file holds another library's names (those go through ``import_weights``), or another
            architecture.
    """
    tensors = read_tensors(path)
    if architecture is not None:
        check_architecture(path, architecture)
    foreign = [name for name in tensors if not is_native({name: None})]
    if foreign:
        raise UserError(
            f"{path}: {foreign[0]} is not a name of ours ({'/... or '.join(COLLECTIONS)}/...); "
            "convert the file first: dynpix import-weights --source FILE --out FILE.safetensors, with --arch "
            "(a backbone) or --config (a whole network)"
        )
    for name in tensors:
        if inside := [parent for parent in _parents(name) if parent in tensors]:
            raise UserError(f"{path}: {inside[0]} is a tensor, but {name} lies below it")
    return traverse_util.unflatten_dict(tensors, sep="/")


def check_complete(path: str | os.PathLike[str], given: Variables, network: Variables) -> None:
    """Checks that weights are those of a network: all of them, with its shapes, and no others.

    Raises:
        UserError: Names one that is missing, one too many, or one of another shape.
    """
    have = traverse_util.flatten_dict(given, sep="/")
    expected = traverse_util.flatten_dict(network, sep="/")
    for name in sorted(have.keys() & expected.keys()):
        if have[name].shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {have[name].shape}, the config's network {expected[name].shape}"
            )
    for names, said in (
        (sorted(expected.keys() - have.keys()), "lacks"),
        (sorted(have.keys() - expected.keys()), "has, beside those of the config's network,"),
    ):
        if names:
            raise UserError(
                f"{path}: {said} {len(names)} tensors, the first {names[0]}; it is of another variant of the "
                "network, or incomplete (dynpix import-weights lists what is missing)"
            )


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]
