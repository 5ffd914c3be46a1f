"""What a repository declares, and what the start says when it is wrong."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import models
from django.db.models import Count, F, Subquery, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Length, Upper
from django.test.utils import isolate_apps, override_settings
from fastapi import FastAPI
from pydantic import BaseModel
from rest_framework import serializers
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, Repository
from fastapi_django_orm.errors import FieldsNotNamed, InvalidRepository, UnknownField, UnknownModel
from tests.project.board.models import Account, Author, LoudTopic, Seat, Topic
from tests.support.projects import Project
from tests.support.repositories import declare, of, read, rows

pytestmark = pytest.mark.usefixtures("sqlite")


def refusal(repository: type[Any], kind: type[Exception] = InvalidRepository) -> str:
    """The message with which the start ends."""
    with pytest.raises(kind) as caught:
        rows(repository)
    assert isinstance(caught.value, ImproperlyConfigured)
    return str(caught.value)


# The model


@pytest.mark.parametrize("model", ["board.Topic", "board.topic", Topic])
def test_a_model_is_named_by_its_label_or_its_class(model: Any) -> None:
    """A label in Django's spelling and the class itself mean the same model."""
    Topic.objects.create(comment="here")
    assert [row["comment"] for row in rows(declare(model=model))] == ["here"]


def test_a_declaration_imports_no_model(project: Project) -> None:
    """A module that declares repositories can be imported before Django is set up."""
    code = """
        import sys
        from main import Topics
        from django.apps import apps
        print(Topics.model, "bbs.models" in sys.modules, apps.ready)
    """
    assert project.python(code) == "bbs.Topic False False\n"


def test_a_wrong_label_is_answered_with_the_nearest_ones() -> None:
    """The error for `board.Topik` names the repository and `board.Topic`."""
    message = refusal(declare(model="board.Topik"), UnknownModel)
    assert "Topics.model" in message
    assert "'board.Topik'" in message
    assert "Did you mean 'board.Topic'" in message


@pytest.mark.parametrize("label", ["Topic", "", "a.b.c", "nowhere.Topic"])
def test_a_label_of_no_app_is_an_unknown_model(label: str) -> None:
    """Whatever is no `app.Model` ends as an unknown model, which is a LookupError."""
    assert issubclass(UnknownModel, LookupError)
    assert repr(label) in refusal(declare(model=label), UnknownModel)


def test_a_label_of_an_app_that_is_not_installed_asks_for_it() -> None:
    """The error asks about INSTALLED_APPS where the label's app is not there, and only there."""
    assert "Is 'bbs' in INSTALLED_APPS?" in refusal(declare(model="bbs.Topic"), UnknownModel)
    assert "Is " not in refusal(declare(model="board.Nothing"), UnknownModel)
    assert "Is " not in refusal(declare(model="Topic"), UnknownModel)


def test_settings_without_any_model_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no app has a model, the settings may not be the project's: the error says which they are."""
    monkeypatch.setattr(apps, "get_models", lambda **_: [])
    message = refusal(declare(model="bbs.Topic"), UnknownModel)
    assert "Is 'bbs' in INSTALLED_APPS? No app there has a model." in message
    assert repr(settings.SETTINGS_MODULE) in message


def test_a_wrong_label_in_depends_on_is_told_as_that() -> None:
    """The error names the attribute that has the label."""
    message = refusal(declare(depends_on=("board.Autor",)), UnknownModel)
    assert message.startswith("Topics.depends_on: there is no model 'board.Autor'")
    assert refusal(declare(depends_on=(3,))).startswith("Topics.depends_on: 3 is neither")


class Abstract(models.Model):
    class Meta:
        abstract = True
        app_label = "board"


@pytest.mark.parametrize("model", [int, 3, Abstract, BaseModel])
def test_what_is_no_model_is_refused(model: Any) -> None:
    """A class that is no model with a table is refused in words."""
    assert "neither a model's label nor a model" in refusal(declare(model=model))


def test_a_repository_without_a_model_is_refused() -> None:
    """The error says which class has none, and what to write."""
    message = refusal(declare(model=None))
    assert message == 'Topics has no `model`. Write the label of one, app and class: model = "app.Model".'


def test_a_proxy_model_is_a_model() -> None:
    """A proxy model is served with the columns of its concrete model."""
    Topic.objects.create(comment="here")
    assert [row["comment"] for row in rows(declare(model="board.LoudTopic"))] == ["here"]


# The name


@pytest.mark.parametrize(
    ("name", "key"),
    [("Topics", "topics"), ("OldTopics", "old_topics"), ("HTTPLogs", "http_logs"), ("V2Topics", "v2_topics")],
)
def test_the_name_is_the_class_name_in_snake_case(name: str, key: str) -> None:
    """Without a name the key in the response is the class's name in snake case."""
    assert read(declare(name), lambda topics: topics.response().body) == b'{"%s":[]}' % key.encode()


def test_a_name_is_escaped_as_json_wants_it() -> None:
    """A name with quotes, backslashes, control characters and Japanese is the key all the same."""
    name = 'a"b\\c\n題'

    class Topics(CachedRepository):
        model = "board.Topic"

    Topics.name = name
    assert read(Topics, lambda topics: topics.response().body) == '{"a\\"b\\\\c\\n題":[]}'.encode()


def test_two_repositories_of_one_name_are_refused() -> None:
    """The start names the second class and the name that both have."""
    others = declare("Others")
    others.name = "topics"

    async def start() -> None:
        async with DjangoORM(repositories=[declare(), others]).lifespan(FastAPI()):
            pass

    with pytest.raises(InvalidRepository, match=r"Others: another repository is called 'topics'"):
        asyncio.run(start())


def test_a_subclass_has_a_name_of_its_own() -> None:
    """A repository that extends another inherits what it declares, and not its name."""

    class Base(CachedRepository):
        model = "board.Topic"
        name = "base"
        ordering = ("-pk",)

    class Derived(Base):
        pass

    Topic.objects.create(comment="1")
    Topic.objects.create(comment="2")
    assert Derived.name == "derived"
    assert [row["comment"] for row in rows(Derived)] == ["2", "1"]


# The attributes' spelling


class Misspelled(BaseModel):
    id: int


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("cache_controll", "no-store", "cache_control"),
        ("cachecontrol", "no-store", "cache_control"),
        ("orderng", ("-pk",), "ordering"),
        ("odrering", "-pk", "ordering"),
        ("max_agee", timedelta(minutes=1), "max_age"),
        ("maxage", 60, "max_age"),
        ("fieldz", ("id",), "fields"),
        ("field", ["id"], "fields"),
        ("feilds", "id", "fields"),
        ("schma", Misspelled, "schema"),
        ("publsh", "/topics/", "publish"),
        ("index", ("comment",), "indexes"),
        ("max_decoded_row", 5, "max_decoded_rows"),
        ("depend_on", ("auth.User",), "depends_on"),
    ],
)
def test_an_attribute_that_is_misspelled_is_refused(name: str, value: Any, meant: str) -> None:
    """It would be ignored: the start ends with its name and the one that was meant, for subclasses too."""
    expected = f"Topics.{name}: a repository has no such attribute. Did you mean {meant!r}?"
    assert refusal(declare(**{name: value})).startswith(expected)
    derived = type("Derived", (declare(**{name: value}),), {"__module__": __name__})
    assert refusal(derived).startswith(expected)


def test_a_model_that_is_misspelled_is_the_reason_why_there_is_none() -> None:
    """The error about a missing model names the attribute that looks like it."""
    topics = type("Topics", (CachedRepository,), {"modle": "board.Topic"})
    assert "Topics.modle: " in refusal(topics)
    assert "Did you mean 'model'?" in refusal(topics)


def test_attributes_of_the_users_own_are_nobodys_business() -> None:
    """Other words, longer words, functions, and private names are left alone."""

    class Schema(BaseModel):
        id: int

    class Mixin:
        orderng = ("-pk",)  # for other classes

    class Topics(Mixin, CachedRepository):
        model = "board.Topic"
        names = ("a", "b")
        publisher = "O'Reilly/Springer"
        publish_to = "/topics/"
        published = True
        orderings = ("pk", "-pk")
        schema2 = Schema
        modes = ("r", "w")
        mode = "r"
        scheme = "https"
        min_age = timedelta(days=1)
        schema = Schema
        schemas = (Schema,)
        FIELDS = ("id",)
        _fieldz = ("id",)
        page_size = 20
        title = "Topics"
        tenant = None
        Error = ValueError

        def publsh(self) -> None: ...

        def latest(self, count: int) -> tuple[Any, ...]:
            return self.all()[:count]

        async def search(self, text: str) -> list[Any]:
            return [row for row in self.all() if text in row.comment]

        def get(self, pk: Any) -> Any:
            return super().get(pk)

        @property
        def orders(self) -> tuple[str, ...]:
            return ("a",)

    Topics.Schema = Schema  # type: ignore[attr-defined]
    assert rows(Topics) == []


HABITS: dict[str, tuple[Any, str]] = {
    "exclude": (("secret",), "fields = ("),
    "include": (("id",), "fields = ("),
    "only": (("id",), "fields = ("),
    "defer": (("comment",), "fields = ("),
    "columns": (("id",), "fields = ("),
    "values": (("id",), "fields = ("),
    "Meta": (type("Meta", (), {"fields": ("id",)}), "fields = ("),
    "get_queryset": (lambda self: None, "def queryset(self)"),
    "queryset": (None, "def queryset(self)"),
    "filter": ({"draft": False}, "def queryset(self)"),
    "annotate": ({}, "def queryset(self)"),
    "distinct": (True, "def queryset(self)"),
    "objects": (object(), "def queryset(self)"),
    "select_related": (("author",), "def queryset(self)"),
    "order_by": (("-pk",), "ordering = ("),
    "serializer_class": (dict, "schema = "),
    "response_model": (BaseModel, "schema = "),
    "permission_classes": (("IsAdmin",), "leave `publish` out"),
    "authentication_classes": ((), "leave `publish` out"),
    "permissions": ((), "leave `publish` out"),
    "auth": (object(), "leave `publish` out"),
    "dependencies": ([], "leave `publish` out"),
    "as_view": (classmethod(lambda cls: None), "Depends("),
    "http_method_names": (["get"], "Depends("),
    "lookup_field": ("slug", "fetch(field="),
    "pagination_class": (object, "?limit="),
    "limit": (10, "?limit="),
    "filterset_fields": (("a",), "find()"),
    "using": ("replica", "DATABASE_ROUTERS"),
    "ttl": (60, "max_age"),
}


@pytest.mark.parametrize("base", [CachedRepository, Repository])
@pytest.mark.parametrize("word", HABITS)
def test_words_of_other_libraries_are_refused(word: str, base: type[Any]) -> None:
    """What Django's, DRF's and ninja's classes look at would be ignored: the start says what to write."""
    value, instead = HABITS[word]
    topics = type("Topics", (base,), {"__module__": __name__, "model": "board.Topic", word: value})
    message = refusal(topics)
    assert message.startswith(f"Topics.{word}: ")
    assert instead in message
    assert refusal(type("Derived", (topics,), {"__module__": __name__})) == message


def test_methods_of_a_query_set_name_those_of_a_repository() -> None:
    """`topics.filter(…)` is an AttributeError that says what there is; any other name is Python's own."""
    for name in ("filter", "count", "objects"):
        with pytest.raises(AttributeError, match=rf"{name}.*`topics\.find\(field=value\)`"):
            getattr(declare(model="board.Topic")(), name)
    with pytest.raises(AttributeError, match=r"`await topics\.fetch\(pk\)`"):
        type("Live", (Repository,), {"model": "board.Topic"})().all  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        getattr(declare(model="board.Topic")(), "nothing")  # noqa: B009


def test_such_a_word_is_refused_in_a_mixin() -> None:
    """A mixin made for views guards no repository."""
    guarded = type("LoginRequiredMixin", (), {"login_url": "/login/"})
    topics = type("Topics", (guarded, CachedRepository), {"model": "board.Topic"})
    assert "LoginRequiredMixin.login_url: " in refusal(topics)


@pytest.mark.parametrize("name", ["query_set", "querysets", "qeuryset", "quereyset"])
def test_a_query_that_is_misspelled_is_refused(name: str) -> None:
    """A function whose name is nearly `queryset` would never be called."""
    assert "Did you mean 'queryset'" in refusal(declare(**{name: lambda self: Topic.objects.none()}))


@pytest.mark.parametrize("name", ["queryset", "get", "response", "fetch"])
def test_a_value_in_the_place_of_a_method_is_refused(name: str) -> None:
    """A class, a list or a query where a method belongs is no declaration."""
    for value in (Topic.objects.all(), BaseModel, ("id",), None):
        assert f"Topics.{name}: {name}() is a method" in refusal(declare(**{name: value}))


@pytest.mark.parametrize("name", ["max_age", "indexes", "max_decoded_rows", "depends_on"])
def test_what_keeps_rows_is_refused_where_none_are_kept(name: str) -> None:
    """A live repository has nothing to index or to grow old."""
    live = type("Live", (Repository,), {"model": "board.Topic", name: ()})
    assert f"Live.{name}: only a CachedRepository" in refusal(live)


def test_all_fields_are_not_called_by_a_word() -> None:
    """Django's `"__all__"` is no field, and the error says what to do."""
    assert "name the fields, or leave it out" in refusal(declare(fields="__all__"))


# The fields


def test_by_default_rows_have_all_concrete_columns_and_annotations() -> None:
    """The default rows are the dicts of `.values()`, columns in the model's order, then annotations."""
    Topic.objects.create(comment="here", author=Author.objects.create(name="A"), tags=["x"])
    expected = list(Topic.objects.annotate(n=Value(7)).values())
    found = rows(of(lambda: Topic.objects.annotate(n=Value(7))))
    assert found == expected
    assert list(found[0]) == ["id", "comment", "author_id", "tags", "created_at", "n"]


def test_fields_name_columns_relations_and_annotations() -> None:
    """`fields` takes what `.values()` takes, and nothing else is in the rows."""
    author = Author.objects.create(name="A")
    Topic.objects.create(comment="here", author=author, tags=["x"])
    repository = of(
        lambda: Topic.objects.annotate(n=Value(7)),
        fields=("pk", "n", "author", "author_id", "author__name", "tags__0"),
    )
    (row,) = rows(repository)
    assert row == {
        **row,
        "n": 7,
        "author": author.pk,
        "author_id": author.pk,
        "author__name": "A",
        "tags__0": "x",
    }
    assert list(row) == ["pk", "n", "author", "author_id", "author__name", "tags__0"]


def test_rows_are_found_by_key_whatever_the_fields_are() -> None:
    """`get()` knows the rows' keys also where the rows do not show them, or show them first."""
    topics = [Topic.objects.create(comment=str(number)) for number in range(3)]
    for fields in [("comment",), ("pk", "comment", "n"), ("comment", "pk"), ("n", "id", "pk", "comment")]:
        repository = of(lambda: Topic.objects.annotate(n=Value(7)), fields=fields)
        assert read(repository, lambda served: [served.get(t.pk)["comment"] for t in topics]) == [
            "0",
            "1",
            "2",
        ]


@pytest.mark.parametrize("field", ["coment", "comment__nope", "author__nam", ""])
def test_a_field_that_is_not_there_is_refused(field: str) -> None:
    """The error names the repository, the attribute and the model, and is a FieldError."""
    assert issubclass(UnknownField, FieldError)
    message = refusal(declare(fields=("id", field)), UnknownField)
    assert f"Topics.fields: board.Topic has no field {field!r}" in message


def test_a_wrong_field_is_answered_with_the_nearest_ones() -> None:
    """The error for `coment` asks for `comment`."""
    assert "Did you mean 'comment'" in refusal(declare(fields=("coment",)), UnknownField)


@pytest.mark.parametrize("attribute", ["fields", "ordering", "indexes"])
def test_a_text_in_the_place_of_a_tuple_is_refused(attribute: str) -> None:
    """`("comment")` is a text, and the error writes the tuple that was meant."""
    assert f"Topics.{attribute}: write ('comment',)" in refusal(declare(**{attribute: "comment"}))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("max_age", 60),
        ("max_age", timedelta(0)),
        ("max_age", timedelta(-1)),
        ("name", 5),
        ("name", None),
        ("name", ""),
        ("fields", 3),
        ("fields", ()),
        ("indexes", None),
        ("ordering", None),
    ],
)
def test_an_attribute_of_a_wrong_kind_is_refused(attribute: str, value: Any) -> None:
    """The start ends with the name of the repository and of the attribute, and with what to write."""
    repository = declare()
    setattr(repository, attribute, value)
    assert refusal(repository).startswith(f"Topics.{attribute}: ")


@pytest.mark.parametrize(
    ("value", "seconds"), [(300, "300"), (0.5, "0.5"), (0, "60"), (True, "60"), ("1h", "60")]
)
def test_an_age_is_written_as_a_time(value: Any, seconds: str) -> None:
    """The error for a number of seconds writes the time that it would be."""
    assert f"write timedelta(seconds={seconds}), not {value!r}" in refusal(declare(max_age=value))


def test_a_model_with_a_password_must_name_its_fields() -> None:
    """Serving every column of a model with a password field ends the start, with what to write."""
    message = refusal(declare("Accounts", "board.Account"), FieldsNotNamed)
    assert "'password'" in message
    assert "fields = ('id', 'login', …)" in message


@pytest.mark.parametrize("model", ["board.Account", "auth.User"])
def test_a_model_with_a_password_is_served_where_the_fields_are_named(model: str) -> None:
    """With fields, or a schema, the same model is served, without its password."""

    class Out(BaseModel):
        id: int

    assert rows(declare("Accounts", model, fields=("id",))) == []
    assert rows(declare("Accounts", model, schema=Out)) == []


def test_only_the_named_fields_of_an_account_are_served() -> None:
    """No byte of the response is the password."""
    Account.objects.create(login="ann", password="secret")
    assert b"secret" not in read(declare(model=Account, fields=("login",)), lambda a: a.snapshot.json)


class AllOfAccount(serializers.ModelSerializer[Account]):
    class Meta:
        model = Account
        fields = "__all__"


class AllButLogin(serializers.ModelSerializer[Account]):
    class Meta:
        model = Account
        exclude = ("login",)


class AllWithin(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    accounts = AllOfAccount(many=True)


class NinjasAll(BaseModel):
    """What django-ninja's ModelSchema makes of `fields = "__all__"`."""

    id: int
    password: str

    class Meta:
        fields = "__all__"


class NinjasWithin(BaseModel):
    accounts: list[NinjasAll] | None = None


def shown(annotation: Any) -> Any:
    return Topic.objects.annotate(shown=annotation)


UNNAMED: dict[str, dict[str, Any]] = {
    "by default": {"model": Account},
    "values": {"model": Account, "queryset": lambda self: Account.objects.values()},
    "filtered values": {
        "model": Account,
        "queryset": lambda self: Account.objects.values("login").filter(pk=1).values(),
    },
    "deferred": {"model": Account, "queryset": lambda self: Account.objects.defer("password")},
    "annotation of one": {"queryset": lambda self: Account.objects.annotate(x=Upper("password"))},
    "values with an annotation": {"queryset": lambda self: Account.objects.annotate(n=Value(1)).values()},
    "subquery": {"queryset": lambda self: shown(Subquery(Account.objects.values("password")[:1]))},
    "subquery of an annotation": {
        "queryset": lambda self: shown(Subquery(Account.objects.annotate(y=F("password")).values("y")[:1])),
    },
    "raw": {"queryset": lambda self: shown(RawSQL("(SELECT max(password) FROM board_account)", ()))},
    "extra": {
        "queryset": lambda self: Topic.objects.extra(
            select={"x": "(SELECT max(password) FROM board_account)"}
        ).values()
    },
    "annotation's name": {"queryset": lambda self: Topic.objects.annotate(api_key=Value("k"))},
    "serializer": {"model": Account, "schema": AllOfAccount},
    "serializer's exclude": {"model": Account, "schema": AllButLogin},
    "nested serializer": {"model": Account, "schema": AllWithin},
    "ninja": {"model": Account, "schema": NinjasAll},
    "nested ninja": {"model": Account, "schema": NinjasWithin},
}


@pytest.mark.parametrize("base", [CachedRepository, Repository])
@pytest.mark.parametrize("way", UNNAMED)
def test_no_way_leads_to_a_secret_that_is_not_named(way: str, base: type[Any]) -> None:
    """Whatever selects columns by itself is refused where a secret is among them, with what to write."""
    attributes = {"__module__": __name__, "model": "board.Topic", **UNNAMED[way]}
    refusal(type("Accounts", (base,), attributes), FieldsNotNamed)


def test_secrets_of_parents_and_fields_of_a_secret_kind_are_found() -> None:
    """Inherited columns count, and so does a field whose class says what is in it."""
    with isolate_apps("tests.project.board"):

        class EncryptedTextField(models.TextField):
            """As packages call theirs."""

        class Member(Account):
            nick = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

        class Vault(models.Model):
            note = EncryptedTextField()

            class Meta:
                app_label = "board"

        for model, name in ((Member, "password"), (Vault, "note")):
            assert repr(name) in refusal(declare(model=model), FieldsNotNamed)


class Named(BaseModel):
    password: str


class NamedSerializer(serializers.ModelSerializer[Account]):
    class Meta:
        model = Account
        fields = ("login", "password")


@pytest.mark.parametrize(
    "attributes",
    [
        {"fields": ("password",)},
        {"schema": Named},
        {"schema": NamedSerializer},
        {"queryset": lambda self: Account.objects.values("password")},
        {"queryset": lambda self: Account.objects.values(hash=F("password"))},
        {"queryset": lambda self: Account.objects.annotate(hash=Upper("password")), "fields": ("hash",)},
    ],
    ids=["fields", "schema", "serializer", "values", "expression", "annotation"],
)
@pytest.mark.parametrize("publish", [None, "/accounts/"])
def test_what_is_named_is_served(attributes: dict[str, Any], publish: str | None) -> None:
    """Whoever writes a secret's name means it."""
    Account.objects.create(login="ann", password="x")
    assert len(rows(declare(model=Account, publish=publish, **attributes))) == 1


def test_a_secretary_is_no_secret() -> None:
    """A model whose columns only sound like one needs no fields."""
    assert rows(of(lambda: Topic.objects.annotate(secretary=Value("Ann"), passage=Value(1)))) == []


class AllOfTopic(serializers.ModelSerializer[Topic]):
    class Meta:
        model = Topic
        exclude = ("tags",)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"queryset": lambda self: Topic.objects.values()},
        {"queryset": lambda self: Topic.objects.only("id", "comment")},
        {"schema": AllOfTopic},
    ],
    ids=["nothing", "values", "only", "exclude"],
)
@pytest.mark.parametrize("base", [CachedRepository, Repository])
def test_what_is_published_is_named(base: type[Any], attributes: dict[str, Any]) -> None:
    """Without names, every column that a migration adds would be public: the start says what to write."""
    topics = type("Topics", (base,), {"model": "board.Topic", "publish": "/topics/", **attributes})
    message = refusal(topics, FieldsNotNamed)
    assert message.startswith("Topics.publish: what is published is public")
    assert "migration" in message


def test_what_is_published_is_named_at_the_latest_without_debug() -> None:
    """Under DEBUG a warning says the same; a secret is refused there, too."""
    with override_settings(DEBUG=True), capture_logs() as logs:
        assert rows(declare(publish="/topics/")) == []
        refusal(declare("Accounts", "board.Account", publish="/accounts/"), FieldsNotNamed)
    (warning,) = (entry for entry in logs if entry["event"] == "published_without_fields")
    assert "fields = (" in warning["hint"]


def test_fields_and_schema_exclude_each_other() -> None:
    """A schema names the fields, so both together are refused."""
    assert "`fields` or `schema`" in refusal(declare(fields=("id",), schema=BaseModel))


@pytest.mark.parametrize("schema", [dict, int, 3, "TopicOut"])
def test_a_schema_of_another_kind_is_refused(schema: Any) -> None:
    """What is neither a pydantic model nor a serializer class is refused in words."""
    assert "neither a pydantic model nor a DRF serializer" in refusal(declare(schema=schema))


# The order


def test_ordering_orders_as_order_by_does(database: str) -> None:
    """`ordering` takes columns, relations and expressions, and the key decides between equals."""
    for name, comment in [("B", "1"), ("A", "2"), ("A", "1")]:
        Topic.objects.create(comment=comment, author=Author.objects.create(name=name))
    for ordering in [
        ("-pk",),
        ("author__name", "comment"),
        ("comment",),
        (F("author__name").desc(), "pk"),
        ("-comment", "-pk"),
    ]:
        expected = [
            topic.pk
            for topic in Topic.objects.order_by(*ordering, *([] if "pk" in str(ordering) else ["pk"]))
        ]
        assert [row["id"] for row in rows(declare(ordering=ordering))] == expected


def test_without_ordering_rows_come_by_key(database: str) -> None:
    """A query without an order is ordered by the primary key, whatever the table's own order is."""
    for pk in (3, 1, 2):
        Topic.objects.create(pk=pk, comment=str(pk))
    Topic.objects.filter(pk=1).update(comment="moved")
    assert [row["id"] for row in rows(declare())] == [1, 2, 3]


def test_the_querys_own_order_is_kept() -> None:
    """Without `ordering` the order of `queryset()` counts, and the key decides between equals."""
    for comment in "bab":
        Topic.objects.create(comment=comment)
    found = rows(of(lambda: Topic.objects.order_by("-comment")))
    assert found == list(Topic.objects.order_by("-comment", "pk").values())


@pytest.mark.parametrize("name", ["coment", "-coment", "author__nam"])
def test_an_ordering_by_what_is_not_there_is_refused(name: str) -> None:
    """The error names `ordering` and the field, without its sign."""
    assert f"Topics.ordering: board.Topic has no field {name.lstrip('-')!r}" in refusal(
        declare(ordering=("pk", name)), UnknownField
    )


def test_an_ordering_by_an_annotation_is_none_of_these() -> None:
    """An annotation of `queryset()` is a field to order by."""
    for comment in ("a", "ccc", "bb"):
        Topic.objects.create(comment=comment)
    repository = of(lambda: Topic.objects.annotate(n=Length("comment")), ordering=("-n",), fields=("n",))
    assert rows(repository) == [{"n": 3}, {"n": 2}, {"n": 1}]


def test_a_sliced_query_keeps_its_order_and_refuses_another() -> None:
    """A slice is served as it is; `ordering` beside it is refused, as Django would refuse it."""
    for comment in "abc":
        Topic.objects.create(comment=comment)

    def newest() -> Any:
        return Topic.objects.order_by("-pk")[:2]

    assert [row["comment"] for row in rows(of(newest))] == ["c", "b"]
    assert "sliced" in refusal(of(newest, ordering=("pk",)))


def test_a_union_is_ordered_where_ordering_says_so() -> None:
    """The rows of `union()` come in the repository's ordering."""
    for comment in "abc":
        Topic.objects.create(comment=comment)

    def both() -> Any:
        return Topic.objects.filter(comment="a").union(Topic.objects.filter(comment="c"))

    assert [row["comment"] for row in rows(of(both, ordering=("-id",)))] == ["c", "a"]
    assert sorted(row["comment"] for row in rows(of(both))) == ["a", "c"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_distinct_on_is_ordered_where_ordering_says_so(database: str) -> None:
    """PostgreSQL's DISTINCT ON keeps the row that comes first in the repository's ordering."""
    author = Author.objects.create(name="A")
    for comment in "abc":
        Topic.objects.create(comment=comment, author=author)
    repository = of(lambda: Topic.objects.distinct("author_id"), ordering=("author_id", "-comment"))
    assert [row["comment"] for row in rows(repository)] == ["c"]


def test_an_expression_that_orders_by_what_is_not_there_is_refused() -> None:
    """An expression is checked at the start as well, in Django's words."""
    message = refusal(declare(ordering=(F("coment").desc(),)), UnknownField)
    assert "Topics.ordering: Cannot resolve keyword 'coment'" in message


def test_ordering_takes_all_that_order_by_takes() -> None:
    """Parts of dates, keys in JSON, relations and chance are no unknown fields."""
    for name in ("created_at__year", "-tags__0", "author", "-author__name", "?", "author_id"):
        assert rows(declare(ordering=(name,))) == []


# The query


def test_queryset_filters_and_annotates() -> None:
    """What `queryset()` leaves out is not served, and what it adds is."""
    author = Author.objects.create(name="A")
    for comment in ("yes", "no"):
        Topic.objects.create(comment=comment, author=author)

    class Topics(CachedRepository):
        model = "board.Topic"
        fields = ("comment", "written")

        def queryset(self) -> Any:
            return super().queryset().filter(comment="yes").annotate(written=Count("author__topic"))

    assert rows(Topics) == [{"comment": "yes", "written": 2}]


def test_a_queryset_of_values_gives_the_rows(database: str) -> None:
    """The dicts of a query that ends in `.values()` are the rows, renamed and grouped as it says."""
    author = Author.objects.create(name="A")
    for comment in "abc":
        Topic.objects.create(comment=comment, author=author)

    def renamed() -> Any:
        return Topic.objects.values("id", "tags", text=F("comment"))

    def grouped() -> Any:
        return Topic.objects.values("author_id").annotate(n=Count("pk")).order_by()

    assert rows(of(renamed, ordering=("-text",))) == list(renamed().order_by("-text"))
    assert read(of(renamed, indexes=("text",)), lambda topics: len(topics.find(text="b"))) == 1
    assert rows(of(grouped)) == [{"author_id": author.pk, "n": 3}]


def test_values_keep_the_order_in_which_they_are_named(database: str) -> None:
    """Annotations among the columns of `.values()` stand in the JSON where Django has them in the dicts."""
    Topic.objects.create(comment="here")

    def mixed() -> Any:
        return Topic.objects.annotate(size=Length("comment")).values("size", "id", text=F("comment"))

    (expected,) = mixed()
    (row,) = read(of(mixed), lambda topics: json.loads(topics.snapshot.json)["topics"])
    assert list(row.items()) == list(expected.items())


@pytest.mark.parametrize("attribute", [{"fields": ("id",)}, {"schema": BaseModel}])
def test_a_queryset_of_values_says_the_fields_once(attribute: dict[str, Any]) -> None:
    """`fields` or `schema` beside `.values()` are refused."""
    assert "ends in .values()" in refusal(of(lambda: Topic.objects.values("id"), **attribute))


@pytest.mark.parametrize(
    "queryset",
    [
        lambda: Account.objects.values_list("login"),
        lambda: Account.objects.values_list("login", flat=True),
        lambda: Account.objects.values_list("login", named=True),
        lambda: Topic.objects.dates("created_at", "day"),
        lambda: Topic.objects.raw("SELECT * FROM board_topic"),
        list,
        lambda: None,
    ],
    ids=["values_list", "flat", "named", "dates", "raw", "list", "none"],
)
def test_a_queryset_of_anything_else_is_refused(queryset: Any) -> None:
    """A query that names columns in a way that would be lost, or no query, is refused in words."""
    assert "queryset(): give a query" in refusal(of(queryset))


def test_rows_that_a_join_repeats_are_all_served() -> None:
    """A query with duplicates gives each of them, in `all()` and in the bytes."""
    author = Author.objects.create(name="A")
    for comment in "ab":
        Topic.objects.create(comment=comment, author=author)
    repository = of(lambda: Author.objects.filter(topic__comment__in="ab"), model="board.Author")
    assert read(repository, lambda authors: (len(authors), authors.get(author.pk)["name"])) == (2, "A")


def test_a_composite_primary_key_is_a_tuple(database: str) -> None:
    """Rows of a model with a composite key are ordered by it and got by the tuple."""
    for row, number in [(2, 1), (1, 2), (1, 1)]:
        Seat.objects.create(row=row, number=number, guest=f"{row}{number}")

    def look(seats: Any) -> Any:
        return [seat["guest"] for seat in seats], seats.get((1, 2))["guest"], (2, 1) in seats, (2, 2) in seats

    assert read(declare("Seats", Seat), look) == (["11", "12", "21"], "12", True, False)


# The indexes


def test_an_index_on_what_is_not_there_is_refused() -> None:
    """The error names `indexes` and the field nearest to the wrong one."""
    message = refusal(declare(indexes=("author",)), UnknownField)
    assert "Topics.indexes: its rows have no field 'author'. Did you mean 'author_id'" in message


def test_an_index_on_a_field_that_the_rows_leave_out_is_refused() -> None:
    """Only what the rows show can be looked up by."""
    assert "'comment'" in refusal(declare(fields=("id",), indexes=("comment",)), UnknownField)


def test_a_proxys_property_is_no_field() -> None:
    """`fields` are columns: what only an instance has is refused, and a schema may have it."""
    assert issubclass(LoudTopic, Topic)
    assert "'shout'" in refusal(declare(model=LoudTopic, fields=("shout",)), UnknownField)


# Errors of the project's own


def test_an_error_of_a_manager_says_whose_it_was() -> None:
    """What `queryset()` raises at the start stays what it is, and has the repository's name and label."""

    def queryset(self: Any) -> Any:
        raise LookupError("no tenant")

    with pytest.raises(LookupError, match="no tenant") as caught:
        rows(declare("OldTopics", queryset=queryset))
    assert "OldTopics ('old_topics')" in "".join(caught.value.__notes__)


def test_an_error_of_a_load_says_whose_it_was() -> None:
    """So does what a query raises only when its rows are read."""

    class Broken(models.QuerySet[Any]):
        def iterator(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order") as caught:
        rows(declare("OldTopics", queryset=lambda self: Broken(Topic)))
    assert "'old_topics' was loading" in "".join(caught.value.__notes__)
