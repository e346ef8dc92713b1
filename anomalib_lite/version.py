"""The version, in a place of its own, so that modules can name it without importing the package's front."""

__version__ = "0.2.0.dev0"
