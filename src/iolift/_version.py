"""The version, in one place that the build can read without the compiled core."""

__version__ = "0.1.0"
