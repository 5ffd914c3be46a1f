"""The triggers' SQL: readable, printable, and the same for the same table.

PostgreSQL calls one function for each statement, with the rows that it has changed, so ``bulk_create``,
``update()``, ``COPY``, cascades and psql all count; ``NOTIFY`` goes out when the transaction commits, and not
when it rolls back. Each table has a function of its own, because a query that names its column is planned
once. One function for all tables, which takes the column as an argument, costs a write of one row nearly
three times as much.

django-pgtrigger was looked at. It writes a function for each trigger and leaves it behind, asks a function
with a subtransaction before each call, and puts the triggers into the migrations of the model's app, which is
often somebody else's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

from django.db.backends.base.base import BaseDatabaseWrapper

from ..coherence.hints import CHANNEL, REKEY, VERSION
from .tables import AnnouncedTable

MOST_KEYS_OF_STATEMENT = 1000  # beyond them a hint says "all"
PART = 7000  # bytes of keys in one notification, which must be shorter than 8,000 with all else
LONGEST_KEY = 700  # bytes

_STATEMENT = " FOR EACH STATEMENT EXECUTE FUNCTION {function}()"

# Only the new rows: to collect the old ones, too, would slow an update of 10,000 rows by another 3 %. They
# matter where a key itself changes, and then the last trigger says "all".
_TRIGGERS = {
    f"{CHANNEL}_insert": "AFTER INSERT ON {table} REFERENCING NEW TABLE AS changed" + _STATEMENT,
    f"{CHANNEL}_update": "AFTER UPDATE ON {table} REFERENCING NEW TABLE AS changed" + _STATEMENT,
    f"{CHANNEL}_delete": "AFTER DELETE ON {table} REFERENCING OLD TABLE AS changed" + _STATEMENT,
    f"{CHANNEL}_truncate": "AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}('all')",
    # As bytes, since to a type or a collation different letters may be the same. It runs only for statements
    # that write the key.
    REKEY: "AFTER UPDATE OF {key} ON {table} FOR EACH ROW"
    ' WHEN (OLD.{key}::pg_catalog.text COLLATE "C" IS DISTINCT FROM NEW.{key}::pg_catalog.text COLLATE "C")'
    " EXECUTE FUNCTION {function}('all')",
}

# Every name is qualified, so that no search_path of a writer can put something else in its place.
#
# A migration may rename the key's column or drop it, and no write may fail for that. So a variable has the
# column's name, too: where the rows have no such column, it gives null for each. The block around keeps it
# apart from variables of ours that may have the same name.
_FUNCTION = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $hint$
#variable_conflict use_column
{key}<<hint>>
DECLARE
    keys pg_catalog.text[];
    parts pg_catalog.text[];
    part pg_catalog.text;
BEGIN
    IF TG_NARGS OPERATOR(pg_catalog.=) 0 THEN
{read}
    END IF;
{send}
    RETURN NULL;
END{end}
$hint$"""

# One row is the usual case and has a query that does all: every expression more costs a microsecond or two.
# What fits into one notification is sent at once, too; the rest is rare enough to be slow. Queries in which
# the key may become a variable mention another: without it, PL/pgSQL passes none when they are planned anew.
# The workers look for {rekey} in the function's text: where it is, there must be such a trigger.
_READ_KEYS = """\
        -- {rekey} tells of those that were others before.
        PERFORM {single}
            FROM changed
            WHERE hint.part IS NULL
                AND NOT EXISTS (SELECT FROM changed OFFSET 1)
                AND pg_catalog.octet_length({written}) OPERATOR(pg_catalog.<=) {part};
        IF FOUND THEN
            RETURN NULL;
        END IF;
        keys := ARRAY(SELECT {written} FROM changed WHERE hint.part IS NULL LIMIT {limit});
        IF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.=) 0 THEN
            RETURN NULL;
        ELSIF pg_catalog.cardinality(keys) OPERATOR(pg_catalog.<=) {most} AND keys[1] IS NOT NULL THEN
            part := pg_catalog.array_to_string(keys, ',');
            IF pg_catalog.octet_length(part) OPERATOR(pg_catalog.<=) {part} THEN
{send}
                RETURN NULL;
            END IF;
            parts := ARRAY(
                SELECT pg_catalog.string_agg(numbered.key, ',')
                FROM (
                    SELECT one.key,
                        pg_catalog.max(pg_catalog.octet_length(one.key)) OVER () AS longest,
                        pg_catalog.sum(pg_catalog.octet_length(one.key) OPERATOR(pg_catalog.+) 1)
                            OVER (ROWS UNBOUNDED PRECEDING) OPERATOR(pg_catalog./) {part} AS number
                    FROM pg_catalog.unnest(keys) AS one(key)
                ) AS numbered
                WHERE numbered.longest OPERATOR(pg_catalog.<=) {longest}
                GROUP BY numbered.number
            );
        END IF;"""

_READ_ANY = """\
        PERFORM FROM changed LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;"""

_SEND_PARTS = """\
    IF pg_catalog.cardinality(parts) OPERATOR(pg_catalog.>) 0 THEN
        FOREACH part IN ARRAY parts LOOP
{keyed}
        END LOOP;
    ELSE
{every}
    END IF;"""

# Of a row of pg_trigger, whether it is one of this package. Those of a partition belong to its table's.
OURS = f"starts_with(t.tgname::text, '{CHANNEL}_') AND NOT t.tgisinternal AND t.tgparentid = 0"

# Whatever they were installed for, so that it also serves whoever cannot look into the database.
DROP_ALL = f"""\
DO $all$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT t.tgname, t.tgrelid::pg_catalog.regclass AS relation FROM pg_catalog.pg_trigger t
        WHERE {OURS}
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', found.tgname, found.relation);
    END LOOP;
END
$all$"""

# What only triggers of an earlier version, of a renamed table or of a removed model may have needed.
DROP_UNUSED = f"""\
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
END
$unused$"""


class TriggerSQL:
    """The statements that install a table's triggers, and those that remove them."""

    def __init__(self, table: AnnouncedTable, connection: BaseDatabaseWrapper) -> None:
        """Write the statements; nothing is executed.

        Args:
            table: what to announce.
            connection: whose names to quote; it is not opened.
        """
        quote = connection.ops.quote_name
        self.table = quote(table.model._meta.db_table)
        self.function = f"{CHANNEL}_{_digest(self.table)}"
        self._names = {"table": self.table, "function": self.function}
        self._triggers = dict(_TRIGGERS)
        if table.keyed:
            self._names["key"] = quote(table.key)
        else:
            del self._triggers[REKEY]  # every change says "all" already
        self._body = _FUNCTION.format(
            function=self.function,
            key=f"DECLARE {self._names['key']} pg_catalog.text;\nBEGIN\n" if table.keyed else "",
            read=_read(table, self._names),
            send="\n".join(_send(table)),
            end="; END" if table.keyed else "",
        )

    @property
    def triggers(self) -> frozenset[str]:
        """The triggers' names."""
        return frozenset(self._triggers)

    @property
    def mark(self) -> str:
        """The function's comment, which tells these triggers from those of another version."""
        return f"{CHANNEL} {VERSION} {_digest(''.join(self._created()))}"

    def install(self) -> list[str]:
        """What brings the triggers to this version, from any other or none."""
        comment = f"COMMENT ON FUNCTION {self.function}() IS '{self.mark}'"
        return [*self._dropped(set(_TRIGGERS) - self.triggers), *self._created(), comment]

    def uninstall(self) -> list[str]:
        """What removes the triggers; ``DROP_UNUSED`` removes the function."""
        return self._dropped(_TRIGGERS)

    def _created(self) -> list[str]:
        return [self._body, *(_trigger(name, **self._names) for name in self._triggers)]

    def _dropped(self, names: Iterable[str]) -> list[str]:
        return [f"DROP TRIGGER IF EXISTS {name} ON {self.table}" for name in sorted(names)]


def rekey_trigger(table: str, key: str, function: str) -> str:
    """The statement that creates the trigger which names the column of the key.

    Args:
        table: its name, quoted.
        key: the column's name, quoted.
        function: the name of the table's function, quoted.
    """
    return _trigger(REKEY, table=table, key=key, function=function)


def _trigger(name: str, **names: str) -> str:
    return f"CREATE OR REPLACE TRIGGER {name} {_TRIGGERS[name].format(**names)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(table: AnnouncedTable, names: dict[str, str]) -> str:
    """The function's part for a statement with rows; mostly no other runs."""
    if not table.keyed:
        return _READ_ANY
    written = f"pg_catalog.to_json({names['key']})::pg_catalog.text"
    others = [_literal(label) for label in table.unkeyed]
    return _READ_KEYS.format(
        rekey=REKEY,
        single=", ".join(map(_call, [*_keyed(table, written), *others])),
        written=written,
        limit=MOST_KEYS_OF_STATEMENT + 1,
        most=MOST_KEYS_OF_STATEMENT,
        part=PART,
        longest=LONGEST_KEY,
        send=_notify([*_keyed(table, "part"), *others], 16),
    )


def _send(table: AnnouncedTable) -> Iterator[str]:
    """The function's part for everything else: too many keys, long ones, all rows."""
    if table.keyed:
        every = [_literal(label) for label in table.keyed]
        yield _SEND_PARTS.format(keyed=_notify(_keyed(table, "part"), 12), every=_notify(every, 8))
    if table.unkeyed:
        yield _notify(map(_literal, table.unkeyed), 4)


def _notify(payloads: Iterable[str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}PERFORM {_call(payload)};" for payload in payloads)


def _call(payload: str) -> str:
    return f"pg_catalog.pg_notify('{CHANNEL}', {payload})"


def _keyed(table: AnnouncedTable, keys: str) -> list[str]:
    """The payloads for some of the keys, which an expression gives as text."""
    around = [_literal(label, keys="|").split("|") for label in table.keyed]
    concatenated = " OPERATOR(pg_catalog.||) "
    return [concatenated.join((f"{before}'", keys, f"'{after}")) for before, after in around]


def _literal(label: str, keys: str | None = None) -> str:
    """A hint as `hints.encode` writes it, as a text constant."""
    listed = "" if keys is None else f',"k":[{keys}]'
    return f"""'{{"v":{VERSION},"m":{json.dumps(label)}{listed}}}'"""
