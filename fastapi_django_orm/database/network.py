"""What is done about a network that dies without a word: no reset, no answer, nothing.

A client that waits for an answer can notice in two ways. The kernel probes the peer and ends the connection
if nothing comes back, which PostgreSQL's driver lets be set; where nobody has, it is set here, since the
kernel's own patience is hours. And where something in between still answers the probes (a proxy, a load
balancer), a call that takes longer than ``DJANGO_ORM_CALL_TIMEOUT`` is cut off.
"""

import os
import socket
from contextlib import suppress
from math import ceil
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .engines import takes_driver_options
from .liveness import socket_of

# libpq's parameters: seconds, but for the milliseconds of tcp_user_timeout. Together: 25 s at most.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
POSTGRESQL_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def notice_dead_networks(call_timeout: float) -> None:
    """Complete the ``OPTIONS`` of databases with timeouts; what is written there stays.

    Args:
        call_timeout: seconds that a call may use a connection; 0: as long as it likes.
    """
    for alias, settings in connections.settings.items():
        if takes_driver_options(alias, "postgresql"):
            settings["OPTIONS"] = {**POSTGRESQL_PATIENCE, **settings["OPTIONS"]}
        elif call_timeout and takes_driver_options(alias, "mysql"):
            # PyMySQL's connect_timeout is over when something has accepted; for the server's greeting it
            # waits for ever, and there is no connection yet that cut() could end.
            settings["OPTIONS"] = {"read_timeout": ceil(call_timeout), **settings["OPTIONS"]}


def cut(connection: BaseDatabaseWrapper) -> None:
    """End a connection that another thread waits on, so that it fails there and now."""
    # The descriptor's number may belong to another socket as soon as the other thread closes this one. A
    # duplicate made while the connection still has it refers to the right one.
    with suppress(Exception):
        number: Any = socket_of(connection)
        if number is None or number < 0:
            return
        with socket.socket(fileno=os.dup(number)) as duplicate:
            if socket_of(connection) == number:
                duplicate.shutdown(socket.SHUT_RDWR)
