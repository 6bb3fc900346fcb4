"""mmextra: research methods as plug-in components for OpenMMLab.

Importing the package is cheap: neither torch nor a host package is loaded until a component is
asked for.
"""

from mmextra.version import __version__

__all__ = ['__version__']
