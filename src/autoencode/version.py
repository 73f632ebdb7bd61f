"""The version of this package; a module of its own, so that any layer may record it."""

VERSION = "0.1.0"
