"""What every source must keep, whatever it reads."""

from __future__ import annotations

import pickle

import numpy as np

from dynpix_jax.core.source import Source


def check_source(source: Source) -> None:
    """The first element is as the spec declares it, and is the same when read again or in another process."""
    assert isinstance(source, Source)
    spec = source.spec
    assert spec.licence not in ("", "not stated")
    element = source[0]
    assert list(element) == list(spec.fields)
    height, width = element["image"].shape[:2]
    for name, field in spec.fields.items():
        value = element[name]
        assert value.dtype == field.dtype, name
        assert len(value.shape) == len(field.shape), name
        assert all(want in (None, have) for want, have in zip(field.shape, value.shape, strict=True)), name
        if field.dense:
            assert value.shape[:2] == (height, width), name
        if field.kind == "label" and field.classes:
            assert len(field.classes) == len(field.palette)
            assert set(np.unique(value)) <= {*range(len(field.classes)), field.ignore}, name
        if field.kind == "depth":
            assert np.isfinite(value).all()
            assert value.min() >= 0
        if field.kind == "normals":
            length = np.linalg.norm(value, axis=-1)
            assert (np.isclose(length, 1, atol=1e-3) | (length == 0)).all()
    assert element["index"] == 0
    for other in (source[0], pickle.loads(pickle.dumps(source))[0]):
        for name, value in element.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
