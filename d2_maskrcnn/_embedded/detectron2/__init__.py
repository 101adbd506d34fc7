"""The embedded engine: an independently written subset of Detectron2's API.

It takes the place of Detectron2 where that is not installed; ``d2_maskrcnn`` puts it on ``sys.path`` under this name.
Importing this package imports nothing heavy.
"""

from detectron2._names import install as _install

__version__ = "0.6+embedded"

_install()
