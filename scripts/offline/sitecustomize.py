"""Put on PYTHONPATH, this forbids the network to every Python that starts and writes down who tried, and where to.

Loopback stays: a notebook's kernel is reached over it. Audit hooks see what Python's socket module does, in every
thread and through every library that uses it; a library with a network stack of its own in C or Rust is not seen.
"""

import os
import sys

LOG = os.environ.get("OFFLINE_LOG")
LOCAL = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}


def forbid(event: str, arguments: tuple) -> None:
    """The audit hook: name lookups, connections and datagrams that leave this machine."""
    if event not in EVENTS:
        return
    place = arguments[EVENTS[event]]
    host = place[0] if isinstance(place, tuple) else place
    host = host.decode() if isinstance(host, bytes) else host
    unix = event in ("socket.connect", "socket.sendto") and not isinstance(place, tuple)
    if unix or not host or host.startswith(LOCAL):
        return
    where = f"{event} {place!r} in {' '.join(sys.argv)[:200]}"
    if LOG:
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(where + "\n")
    raise PermissionError(f"the network is closed here: {where}")


sys.addaudithook(forbid)
