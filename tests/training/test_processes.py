"""The argument that names a job of several processes. Jobs themselves are in tests/multiprocess."""

from __future__ import annotations

import pytest

from dynpix_jax.core import processes
from dynpix_jax.core.errors import UserError


def test_an_address_is_read_or_refused() -> None:
    assert processes.parse_address("localhost:1234,4,3") == ("localhost:1234", 4, 3)
    for text, message in (
        ("nonsense", r"--distributed=nonsense: expected auto, off or HOST:PORT,N,I such as"),
        ("localhost:1234,2", "expected auto, off or HOST"),
        ("localhost:70000,2,0", "no port 70000; expected 1 to 65535"),
        ("localhost:1234,2,2", "no process 2 of 2; they count from 0"),
        ("no-such-host.invalid:1234,2,0", r"host no-such-host\.invalid: "),
    ):
        with pytest.raises(UserError, match=message):
            processes.parse_address(text)


def test_alone_without_a_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(variable, raising=False)
    for how in ("auto", "off"):
        processes.start(how)
        assert not processes.several()
    processes.compare("job", {"a": "b"})
    assert processes.gather(b"one") == [b"one"]
