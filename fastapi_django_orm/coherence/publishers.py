"""The writer's ends that need no client library: refresh routes, and Django's own database connections."""

from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from django.db import Error, connections

from ..database.engines import kind_of
from .hints import CHANNEL, Hint, encode
from .table import TABLE
from .transport import Publisher, TransportUnavailable

HTTP_PATIENCE = 5.0  # seconds for an answer
HTTP_MESSAGE_LIMIT = 100_000  # bytes

# A proxy from the environment is for the world outside, not for the service next door.
_opener = build_opener(ProxyHandler({}))


class HTTPPublisher(Publisher):
    """Posts hints to one refresh route: ``?model=bbs.Topic``, and the hint itself as the body.

    The worker that answers passes the hint on to the workers that it is connected with. Workers that nothing
    connects need a URL each.
    """

    def __init__(self, url: str, token: str | None) -> None:
        """Post to ``http://host:8000/refresh/``, with the ``DJANGO_ORM_REFRESH_TOKEN`` that counts there."""
        parts = urlsplit(url)
        self.name = f"http:{parts.hostname}:{parts.port or parts.scheme}"
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def publish(self, hint: Hint) -> None:
        """Post it."""
        query = f"?{urlencode({'model': hint.label})}" if hint.label else ""
        for message in encode(hint, HTTP_MESSAGE_LIMIT):
            self._send(Request(self._url + query, message, self._headers, method="POST"))

    def check(self) -> None:
        """Find out whether anything answers at the URL, be it an error."""
        try:
            self._send(Request(self._url, headers=self._headers, method="OPTIONS"))
        except TransportUnavailable as error:
            if not isinstance(error.__cause__, HTTPError):
                raise

    def _send(self, request: Request) -> None:
        try:
            with _opener.open(request, timeout=HTTP_PATIENCE) as response:
                response.read()
        except HTTPError as error:
            error.close()
            refused = error.code in (401, 403)
            raise TransportUnavailable(
                f"{self.name} answers {error.code}."
                + (" Set DJANGO_ORM_REFRESH_TOKEN to the application's, here too." if refused else "")
            ) from error
        except (OSError, HTTPException) as error:
            raise TransportUnavailable(f"{self.name} does not answer: {error}") from error


class TableOfHintsMissing(TransportUnavailable):
    """The database has no table of hints, so no worker listens to it."""


class DatabasePublisher(Publisher):
    """Sends hints that no write has caused through a database. Raises what others raise."""

    def __init__(self, alias: str) -> None:
        self.name = f"{kind_of(alias)}:{alias}"
        self._connection = connections[alias]

    def publish(self, hint: Hint) -> None:
        """Notify, or write into the table; or have every watcher of a file believe that it was written to."""
        try:
            with self._connection.cursor() as cursor:
                vendor = self._connection.vendor
                if vendor != "postgresql" and TABLE in self._connection.introspection.table_names(cursor):
                    for message in encode(hint):
                        cursor.execute(f"INSERT INTO {TABLE} (hint) VALUES (%s)", [message.decode()])
                elif vendor == "mysql":
                    raise TableOfHintsMissing(
                        f"{self.name}: the table {TABLE} is missing. Run manage.py coherence install --table."
                    )
                elif vendor == "sqlite":
                    # A commit that changes nothing: the user's version of the schema, set to what it is.
                    cursor.execute("BEGIN IMMEDIATE")
                    cursor.execute("PRAGMA user_version")
                    (version,) = cursor.fetchone()
                    cursor.execute(f"PRAGMA user_version = {version}")
                    cursor.execute("COMMIT")
                else:
                    for message in encode(hint):
                        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, message.decode()])
        except Error as error:
            raise TransportUnavailable(f"{self.name}: {str(error).strip()}") from error

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
