"""chasqui's client: hands batches of jobs to the relay on a cluster and brings their verified results home.

    from chasqui_client import sync, SyncConfig
"""

import sys

TYPE_CHECKING = False  # typing is not imported: it alone would double the time of --version

__version__ = "0.1.0"
__all__ = ["SyncConfig", "__version__", "sync"]

if TYPE_CHECKING:
    from typing import Any

    from .api import SyncConfig as SyncConfig
    from .api import sync as sync


class _Package(type(sys)):  # type: ignore[misc]
    """Keeps `chasqui_client.sync` the function: an imported submodule, sync.py too, becomes an attribute here."""

    def __setattr__(self, name: str, value: "Any") -> None:
        if not (name == "sync" and isinstance(value, type(sys))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> "Any":
    # On demand, so that `chasqui --version` imports neither SQLite nor argparse.
    if name not in ("sync", "SyncConfig"):
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    from . import api
    return getattr(api, name)
