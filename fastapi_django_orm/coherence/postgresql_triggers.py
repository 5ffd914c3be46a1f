"""Whether the tables that are read still announce their writes: a worker looks with every heartbeat.

Triggers may be dropped, switched off or replaced under it, and come back; partitions may be attached and
detached. Nothing announces what was written in between.
"""

import json
from collections.abc import Collection, Mapping

from ..events import logger
from .hints import CHANNEL
from .postgresql_session import Session
from .transport import install_command

# Of each table whether its triggers, and those of its parents and children, announce all kinds of statements
# under the model's label; what distinguishes them from others, and from themselves before they were off and
# on again; what the table is; and whether logical replication fills it, which fires no such triggers.
#
# The bits of pg_trigger.tgtype: INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32. A function of ours ends with the
# digest of its text. REFRESH MATERIALIZED VIEW fires nothing, and writes the view's row in pg_class anew,
# CONCURRENTLY as well; VACUUM and ANALYZE write in place, and so its xmin says when it was refreshed.
_TRIGGERS = f"""
WITH RECURSIVE wanted AS MATERIALIZED (
    SELECT given.label, given.number, to_regclass(given.name)::oid AS relation
    FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS given (name, label, number)
), parents AS (
    SELECT number, relation FROM wanted
    UNION SELECT parents.number, i.inhparent
        FROM parents JOIN pg_catalog.pg_inherits i ON i.inhrelid = parents.relation
), children AS (
    SELECT number, relation FROM wanted
    UNION SELECT children.number, i.inhrelid
        FROM children JOIN pg_catalog.pg_inherits i ON i.inhparent = children.relation
), family AS (SELECT * FROM parents UNION SELECT * FROM children)
SELECT wanted.number, COALESCE(bool_and(found.complete IS TRUE), false),
    string_agg(family.relation || ' ' || COALESCE(found.identity, ''), ';' ORDER BY family.relation)
        || (SELECT CASE c.relkind WHEN 'm' THEN ' ' || c.xmin ELSE '' END FROM pg_class c
            WHERE c.oid = wanted.relation),
    (SELECT c.relkind::text FROM pg_catalog.pg_class c WHERE c.oid = wanted.relation),
    bool_or(EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = family.relation))
FROM wanted JOIN family USING (number)
LEFT JOIN LATERAL (
    SELECT bit_or(t.tgtype) & 60 = 60 AS complete,
        string_agg(t.oid || ' ' || t.xmin || ' ' || p.xmin, ',' ORDER BY t.oid) AS identity
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = family.relation AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
        AND starts_with(t.tgname, '{CHANNEL}_') AND strpos(p.prosrc, wanted.label) > 0
        AND strpos(p.prosrc, %s) > 0
        AND right(p.prosrc, 64) = encode(sha256(convert_to(left(p.prosrc, -64), 'UTF8')), 'hex')
) AS found ON true
GROUP BY wanted.number, wanted.relation
ORDER BY wanted.number"""


class TriggerWatch:
    """Looks at the tables' triggers.

    Attributes:
        unheard: labels of the models whose tables do not announce every kind of write.
        polls: whether there are materialized views, whose REFRESH fires no triggers.
        transport: its name, for logs.
        destination: what the triggers' function must name: what it sends hints with, or writes them into.
    """

    def __init__(self, transport: str, tables: Mapping[str, str], explained: Collection[str]) -> None:
        """As for ``PostgreSQLListener``; the transport's name is for logs."""
        self.unheard: frozenset[str] = frozenset()
        self.polls = False
        self.transport = transport
        self.destination = "pg_notify("
        self._tables = tables
        self._explained = explained
        self._found: list[str | None] = []

    async def look(self, session: Session) -> list[str]:
        """Look at the triggers now.

        Returns:
            Labels of the models whose triggers have changed since the last call, or whose materialized view
            was refreshed: what was written meanwhile may not have been announced.
        """
        labels = list(self._tables.values())
        written = [json.dumps(label) for label in labels]  # as the triggers' function has them
        rows = await session.execute(_TRIGGERS, [list(self._tables), written, self.destination])
        before, self._found = self._found, [identity for _, _, identity, _, _ in rows]
        self.polls = any(kind == "m" for _, _, _, kind, _ in rows)
        missing: list[str] = []
        elsewhere: dict[str, str] = {}
        for label, (_, complete, _, kind, replicated) in zip(labels, rows, strict=True):
            if replicated:
                elsewhere[label] = "filled by logical replication"
            elif kind == "f":
                elsewhere[label] = "a foreign table"
            elif kind == "v":
                if label not in self._explained:
                    elsewhere[label] = "a view"
            elif kind != "m" and not complete:
                missing.append(label)
        self._note(missing, elsewhere)
        return [
            label
            for label, was, now in zip(labels, before or self._found, self._found, strict=True)
            if was != now
        ]

    def _note(self, missing: Collection[str], elsewhere: Mapping[str, str]) -> None:
        before, self.unheard = self.unheard, frozenset(missing) | elsewhere.keys()
        if without := sorted(set(missing) - before):
            options = [] if self.transport.startswith("postgresql:") else ["--table"]
            hint = install_command(without, *options)
            logger.warning("triggers_missing", transport=self.transport, models=without, hint=hint)
        for label in sorted(elsewhere.keys() - before):
            logger.warning(
                "writes_unannounced",
                transport=self.transport,
                models=[label],
                hint=f"Its table is {elsewhere[label]}, and no trigger announces its changes. Give the "
                "repository a max_age, or run `manage.py refresh` after each change.",
            )
