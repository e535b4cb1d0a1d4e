"""The jobs of this folder share what they compile."""

from __future__ import annotations

from tests.training.conftest import shared_compilations

__all__ = ["shared_compilations"]
