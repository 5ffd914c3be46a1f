"""The triggers' SQL: readable, printable, and the same for the same table.

PostgreSQL calls one function for each statement, with the rows before and after it, so ``bulk_create``,
``update()``, ``COPY``, cascades and psql all count. ``NOTIFY`` goes out when the transaction commits, and not
when it rolls back. Each table has its own function, because a query that names its column is planned once.
One function for all tables, which takes the column as an argument, costs a write of one row nearly three
times as much.

No trigger names a column, so none blocks a migration: PostgreSQL refuses to change the type of a column that
a trigger names.

A statement that names a partition, or a child by ``INHERITS``, fires the triggers of that table and not of
its parent; a statement that names the parent fires those of the parent alone. So the parents and children of
a table get triggers that call its function, too.

django-pgtrigger was looked at. It writes a function for each trigger and leaves it behind, asks a function
with a subtransaction before each call, and puts the triggers into the migrations of the model's app, which is
often another project's.

With a table for the hints, the same functions write them there (``coherence install --table``).
"""

import hashlib
import json
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from ..coherence.hints import CHANNEL, VERSION
from ..coherence.table import TABLE
from .tables import AnnouncedTable

MOST_KEYS_OF_STATEMENT = 1000  # beyond them a hint says "all"
MOST_KEYS_IN_TABLE = 10_000  # the same, of a statement whose hints go into a table
KEYS_OF_HINT = 1000
PART = 7000  # bytes of keys in one notification, which must be shorter than 8,000 with all else
PART_IN_TABLE = 900_000  # more than all keys of a hint can have
LONGEST_KEY = 700  # bytes


class Event(NamedTuple):
    """A kind of statement that is announced, and how its trigger refers to the rows."""

    type: int  # as pg_trigger.tgtype has it
    old: str | None  # the name of the table of rows before the statement
    new: str | None  # the name of the table of rows after it
    referencing: str = ""


EVENTS = {
    "insert": Event(4, None, "changed", "REFERENCING NEW TABLE AS changed "),
    "update": Event(16, "before", "changed", "REFERENCING OLD TABLE AS before NEW TABLE AS changed "),
    "delete": Event(8, "changed", None, "REFERENCING OLD TABLE AS changed "),
    "truncate": Event(32, None, None),
}

_FUNCTION = (
    "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql {options}"
    "AS $hint${source}$hint$"
)

# Every name is qualified, so that no search_path of a writer can put something else in its place.
#
# A migration may rename the key's column or drop it, and no write may fail for that. So a variable has the
# column's name, too: where the rows have no such column, it gives null for each. The block around keeps it
# apart from variables of ours that may have the same name. Queries in which the key may become a variable
# mention another (hint.part): without it, PL/pgSQL passes none when they are planned anew.
_KEYED = """
#variable_conflict use_column
DECLARE {key} pg_catalog.text;
BEGIN
<<hint>>
DECLARE
    keys pg_catalog.text[];
    were pg_catalog.text[];
    part pg_catalog.text;
BEGIN{guard}
    IF TG_OP OPERATOR(pg_catalog.<>) 'TRUNCATE' THEN
        keys := ARRAY(SELECT {written} FROM changed WHERE hint.part IS NULL LIMIT {limit});
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        were := ARRAY(SELECT {written} FROM before WHERE hint.part IS NULL LIMIT {limit});
        IF keys OPERATOR(pg_catalog.<>) were THEN -- some row has another key now
            keys := ARRAY(SELECT pg_catalog.unnest(keys) UNION SELECT pg_catalog.unnest(were));
        END IF;
    END IF;
    IF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.=) 0 THEN
        RETURN NULL;
    END IF;
    IF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.<=) {most} AND keys[1] IS NOT NULL THEN
        part := pg_catalog.array_to_string(keys, ',');
        IF pg_catalog.octet_length(part) OPERATOR(pg_catalog.<=) {part}
            AND pg_catalog.cardinality(keys) OPERATOR(pg_catalog.<=) {together}
        THEN
            {some};
            RETURN NULL;
        END IF;
        {some}
            FROM (
                SELECT pg_catalog.string_agg(numbered.key, ',') AS part
                FROM (
                    SELECT one.key,
                        pg_catalog.max(pg_catalog.octet_length(one.key)) OVER () AS longest,
                        pg_catalog.sum(pg_catalog.octet_length(one.key) OPERATOR(pg_catalog.+) 1)
                            OVER (ROWS UNBOUNDED PRECEDING) OPERATOR(pg_catalog./) {part} AS number,
                        (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1)
                            OPERATOR(pg_catalog./) {together} AS thousand
                    FROM pg_catalog.unnest(keys) AS one(key)
                ) AS numbered
                WHERE numbered.longest OPERATOR(pg_catalog.<=) {longest}
                GROUP BY numbered.number, numbered.thousand
            ) AS parts;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    {every};
    RETURN NULL;
END;
END
"""

_UNKEYED = """
BEGIN{guard}
    IF TG_OP OPERATOR(pg_catalog.<>) 'TRUNCATE' THEN
        PERFORM FROM changed LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    {every};
    RETURN NULL;
END
"""

# A write must not fail if the table of hints was removed. Workers notice that it is missing.
_GUARD = """
    IF pg_catalog.to_regclass('{hints}') IS NULL THEN
        RETURN NULL;
    END IF;"""

# Unlogged: a hint costs no WAL, and after a crash everything is read again. Every role that may connect may
# read notifications, and may read hints here as well; workers also remove them.
_CREATE_TABLE = f"""\
CREATE UNLOGGED TABLE IF NOT EXISTS {{hints}} (
    tx pg_catalog.xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), hint pg_catalog.text NOT NULL
);
CREATE INDEX IF NOT EXISTS {TABLE}_tx ON {{hints}} (tx);
GRANT SELECT, DELETE ON {{hints}} TO PUBLIC"""

# A table, and those whose statements may change its rows: a statement on a parent changes children's rows.
FAMILY = """\
WITH RECURSIVE parents (relation) AS (
    SELECT pg_catalog.to_regclass({table})::pg_catalog.oid
    UNION SELECT i.inhparent FROM parents JOIN pg_catalog.pg_inherits i ON i.inhrelid = parents.relation
), children (relation) AS (
    SELECT pg_catalog.to_regclass({table})::pg_catalog.oid
    UNION SELECT i.inhrelid FROM children JOIN pg_catalog.pg_inherits i ON i.inhparent = children.relation
), family (relation) AS (SELECT relation FROM parents UNION SELECT relation FROM children)"""

# Of a row t of pg_trigger and its function p, whether it is one of this package. Those of a partition may
# belong to its table's.
OURS = f"""\
(pg_catalog.starts_with(t.tgname::pg_catalog.text, '{CHANNEL}_')
    OR pg_catalog.starts_with(p.proname::pg_catalog.text, '{CHANNEL}_'))
    AND NOT t.tgisinternal AND t.tgparentid = 0"""

# Whether it is there for another table, a parent or a child of it: its name begins with the function's.
FOR_RELATIVE = "pg_catalog.starts_with(t.tgname::pg_catalog.text, p.proname::pg_catalog.text || '_')"

# Whether it is there for a given table, as it should be or otherwise.
OF_TABLE = f"""\
{OURS} AND (t.tgfoid = pg_catalog.to_regprocedure({{function}})
    OR t.tgrelid = pg_catalog.to_regclass({{table}}) AND NOT {FOR_RELATIVE})"""

_DROP = """\
DO $drop$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT t.tgname, t.tgrelid::pg_catalog.regclass AS relation
        FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        WHERE {which}
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', found.tgname, found.relation);
    END LOOP;
END
$drop$"""

# What CREATE OR REPLACE does not replace: to drop a trigger waits for readers, too.
_MISPLACED = """\
 AND NOT (t.tgname = ANY (CASE WHEN t.tgrelid = pg_catalog.to_regclass({table}) THEN {own} ELSE {others} END)
    AND t.tgrelid IN ({family} SELECT relation FROM family))"""

# They fire whatever session_replication_role a writer has.
_CREATE = """\
DO $create$
DECLARE
    relative pg_catalog.regclass;
    name pg_catalog.text;
BEGIN
    FOR relative IN {family} SELECT relation FROM family LOOP
        name := CASE WHEN relative = {table}::pg_catalog.regclass THEN '{channel}' ELSE '{function}' END;
{create}
    END LOOP;
END
$create$"""

_CREATE_ONE = """\
        EXECUTE pg_catalog.format('CREATE OR REPLACE TRIGGER %I AFTER {event} ON %s {referencing}'
            'FOR EACH STATEMENT EXECUTE FUNCTION {function}()', name || '_{suffix}', relative);
        EXECUTE pg_catalog.format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I',
            relative, name || '_{suffix}');"""

# Whatever they were installed for, so that it also serves whoever cannot look into the database.
DROP_ALL = _DROP.format(which=OURS)

# What only triggers of an earlier version, of a renamed table or of a removed model may have needed.
DROP_UNUSED = (
    _DROP.format(
        which=f"{OURS} AND {FOR_RELATIVE} AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t"
        f" WHERE t.tgfoid = p.oid AND NOT {FOR_RELATIVE})"
    )
    + f""";
DO $unused$
DECLARE
    unused pg_catalog.regprocedure;
BEGIN
    FOR unused IN
        SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE pg_catalog.starts_with(p.proname::pg_catalog.text, '{CHANNEL}_')
            AND p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype
            AND pg_catalog.pg_has_role(p.proowner, 'USAGE')
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid)
    LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION %s', unused);
    END LOOP;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_proc p
        WHERE pg_catalog.starts_with(p.proname::pg_catalog.text, '{CHANNEL}_')
            AND pg_catalog.strpos(p.prosrc, '{TABLE}') OPERATOR(pg_catalog.>) 0
    ) AND EXISTS (
        SELECT FROM pg_catalog.pg_class c
        WHERE c.oid = pg_catalog.to_regclass('{TABLE}') AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
    ) THEN
        DROP TABLE IF EXISTS {TABLE};
    END IF;
END
$unused$"""
)


class TriggerSQL:
    """The statements that install a table's triggers, and those that remove them.

    Attributes:
        table: the table's name, quoted.
        function: the name of the function that its triggers call.
        source: the function's text.
        options: what the function is declared with.
        literals: the names of both, as texts in SQL.
    """

    def __init__(
        self, table: AnnouncedTable, connection: BaseDatabaseWrapper, hints: str | None = None
    ) -> None:
        """Write the statements, with names as this connection quotes them; it is not opened.

        Args:
            table: the table.
            connection: one to its database.
            hints: the name in SQL of the table into which hints go, with its schema; None: NOTIFY.
        """
        quote = connection.ops.quote_name
        self.table = quote(table.model._meta.db_table)
        self.function = f"{CHANNEL}_{_digest(self.table)[:12]}"
        # With its digest at the end, by which a worker sees whether it was replaced.
        source = _source(table, quote(table.key) if table.keyed else "", hints) + "-- "
        self.source = source + _digest(source)
        self._hints = hints
        # A writer needs no rights on the table of hints, nor on its schema.
        self.options = "SECURITY DEFINER " if hints else ""
        literal = self.table.replace("'", "''")
        self.literals = {"table": f"'{literal}'", "function": f"'{self.function}()'"}

    def named(self, is_own: bool) -> dict[str, Event]:
        """The triggers that the table itself should have, or each parent and child of it."""
        before = CHANNEL if is_own else self.function
        return {f"{before}_{suffix}": event for suffix, event in EVENTS.items()}

    def install(self) -> list[str]:
        """What brings the triggers to this version, from any other or none."""
        family = FAMILY.format(**self.literals)
        own, others = (f"'{{{','.join(self.named(is_own))}}}'::name[]" for is_own in (True, False))
        misplaced = _MISPLACED.format(family=family, own=own, others=others, **self.literals)
        created = [
            _CREATE_ONE.format(
                event=suffix.upper(), suffix=suffix, referencing=event.referencing, function=self.function
            )
            for suffix, event in EVENTS.items()
        ]
        return [
            *([_CREATE_TABLE.format(hints=self._hints)] if self._hints else []),
            _FUNCTION.format(function=self.function, options=self.options, source=self.source),
            _DROP.format(which=OF_TABLE.format(**self.literals) + misplaced),
            _CREATE.format(
                family=family,
                table=self.literals["table"],
                channel=CHANNEL,
                function=self.function,
                create="\n".join(created),
            ),
        ]

    def uninstall(self) -> list[str]:
        """What removes the triggers; ``DROP_UNUSED`` removes the function."""
        return [_DROP.format(which=OF_TABLE.format(**self.literals))]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _source(table: AnnouncedTable, key: str, hints: str | None) -> str:
    """The function's text, for this column of the primary key, quoted, and a table for its hints."""
    guard = _GUARD.format(hints=hints.replace("'", "''")) if hints else ""
    every = [f"{_hint(label)}}}'" for label in table.keyed + table.unkeyed]
    if not table.keyed:
        return _UNKEYED.format(guard=guard, every=_send(every, hints))
    most = MOST_KEYS_IN_TABLE if hints else MOST_KEYS_OF_STATEMENT
    # `part` is a variable of the function: some of the keys, with commas between.
    some = [f"""{_hint(label)},"k":[' OPERATOR(pg_catalog.||) part OPERATOR(pg_catalog.||) ']}}'"""
            for label in table.keyed]  # fmt: skip
    return _KEYED.format(
        guard=guard,
        key=key,
        written=f"pg_catalog.to_json({key})::pg_catalog.text",
        limit=most + 1,
        most=most,
        together=KEYS_OF_HINT,
        part=PART_IN_TABLE if hints else PART,
        longest=LONGEST_KEY,
        some=_send([*some, *(f"{_hint(label)}}}'" for label in table.unkeyed)], hints),
        every=_send(every, hints),
    )


def _send(payloads: list[str], hints: str | None) -> str:
    """A statement that sends hints; a FROM clause may follow."""
    if hints is None:
        return "PERFORM " + ", ".join(f"pg_catalog.pg_notify('{CHANNEL}', {each})" for each in payloads)
    return f"INSERT INTO {hints} (hint) SELECT pg_catalog.unnest(ARRAY[{', '.join(payloads)}])"


def _hint(label: str) -> str:
    """The beginning of a hint as `hints.encode` writes it, and of a text constant in SQL."""
    return f"""'{{"v":{VERSION},"m":{json.dumps(label)}"""
