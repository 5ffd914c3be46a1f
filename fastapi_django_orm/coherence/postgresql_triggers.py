"""Whether the tables that are read still tell of their writes: a worker looks with every heartbeat.

Triggers may be dropped, switched off or replaced under it, and come back. What was written in between has
been announced to nobody.
"""

import json
from collections.abc import Collection, Iterable, Mapping

import structlog
from django.apps import apps

from .hints import CHANNEL
from .postgresql_session import SESSION_PATIENCE, Session

logger = structlog.get_logger("fastapi_django_orm")

APP = "fastapi_django_orm.django"  # which has the command

# Of each table whether its triggers announce all kinds of statements under the model's label; and what tells
# them from others, or from themselves before they were switched off and on again.
# The bits of pg_trigger.tgtype: FOR EACH ROW 1, INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32. A trigger for
# each row is only for some updates, and needed beside the others.
_TRIGGERS = f"""
SELECT wanted.number, COALESCE(found.complete, false), found.identity, c.relkind IN ('r', 'p')
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS wanted (name, label, number)
LEFT JOIN pg_catalog.pg_class c ON c.oid = to_regclass(wanted.name)
LEFT JOIN LATERAL (
    SELECT bit_or(t.tgtype) & 60 = 60 AS complete,
        string_agg(t.oid || ' ' || t.xmin, ',' ORDER BY t.oid) AS identity
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND starts_with(t.tgname, '{CHANNEL}')
    AND t.tgenabled IN ('O', 'A') AND strpos(p.prosrc, wanted.label) > 0
) AS found ON true
ORDER BY wanted.number"""


class TriggerWatch:
    """What is known of the tables' triggers.

    Attributes:
        unheard: labels of the models whose tables do not tell of every kind of write.
    """

    def __init__(self, transport: str, tables: Mapping[str, str], explained: Collection[str]) -> None:
        """Know nothing yet.

        Args:
            transport: for logs.
            tables: the names, as SQL has them, of those that should have triggers, and their models' labels.
            explained: labels whose tables may be views, since what is behind them is among the tables.
        """
        self.unheard: frozenset[str] = frozenset()
        self._transport = transport
        self._tables = tables
        self._explained = explained
        self._found: list[str | None] = []

    async def look(self, session: Session) -> bool:
        """Look at the triggers now.

        Returns:
            Whether they differ from those that the last call has found.
        """
        labels = list(self._tables.values())
        written = [json.dumps(label) for label in labels]  # as the triggers' function has them
        rows = await session.execute(_TRIGGERS, [list(self._tables), written], seconds=SESSION_PATIENCE)
        before, self._found = self._found, [identity for _, _, identity, _ in rows]
        self._note(
            label
            for label, (_, complete, _, ordinary) in zip(labels, rows, strict=True)
            if not complete and (ordinary or label not in self._explained)
        )
        return self._found != before

    def _note(self, unheard: Iterable[str]) -> None:
        before, self.unheard = self.unheard, frozenset(unheard)
        if missing := sorted(self.unheard - before):
            hint = _how_to_install(missing)
            logger.warning("triggers_missing", transport=self._transport, models=missing, hint=hint)


def _how_to_install(labels: Iterable[str]) -> str:
    command = f"python manage.py coherence install {' '.join(labels)}"
    return command if apps.is_installed(APP) else f"Put {APP} into INSTALLED_APPS first, then run: {command}"
