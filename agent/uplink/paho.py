"""paho-mqtt's client, without what it loads for proxies: `urllib.request`, and HTTP and e-mail with it, 1.7 MB.

It asks that module which proxy to take, and only where PySocks is installed (`Client._get_proxy`); there it gets it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

_UNUSED = "urllib.request"

if _UNUSED in sys.modules or find_spec("socks") is not None:
    import paho.mqtt.client as mqtt
else:
    sys.modules[_UNUSED] = ModuleType(_UNUSED)
    try:
        import paho.mqtt.client as mqtt
    finally:
        del sys.modules[_UNUSED]  # who needs it later gets the real one

__all__ = ["mqtt"]
