"""The release, as packages and `gatehouse --version` tell it."""

from typing import Final

VERSION: Final = "0.1.0"
