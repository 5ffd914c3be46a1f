"""Free TCP ports for servers that must be told their port before they start.

Between the moment a port is found free and the moment the server binds it, anybody may take it.
That race cannot be closed from here, so whoever starts a server looks for "address already in use"
and tries again with another port (`Server.start`, `Uvicorn.start`).
"""

import random
import socket

import psutil

# Below the ranges from which Linux (32768) and macOS (49152) pick the local port of an outgoing
# connection. Inside such a range a client that keeps reconnecting to a server which is down can be
# given the server's own port as its local one, connect to itself, and so keep the server from
# coming back.
_RANGE = range(15_000, 32_000)

# Not the shared generator: a plugin that seeds it would hand the same ports to every worker.
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    for _ in range(1_000):
        port = _random.choice(_RANGE)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # What servers do too: without it a port with old connections in TIME_WAIT looks taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"No free port of 127.0.0.1 between {_RANGE.start} and {_RANGE.stop}.")


def listens(pid: int, port: int) -> bool:
    """Tell whether a process or one of its descendants listens on a port.

    The kernel is asked, not the port: on a port that was taken somebody else would answer, or keep
    the caller waiting, and a request would appear in the logs and counters that a test looks at.
    """
    try:
        root = psutil.Process(pid)
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for process in [root, *root.children(recursive=True)]
            for connection in process.net_connections("tcp4")
        )
    except psutil.Error:
        # A process on its way out; the caller looks at its exit code next.
        return False
