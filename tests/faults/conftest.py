"""The toy's programs are compiled once for all files."""

from tests.training.conftest import shared_compilations

__all__ = ["shared_compilations"]
