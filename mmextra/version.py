"""The version of mmextra, read by setup.py and the docs."""

__version__ = '0.1.0'
