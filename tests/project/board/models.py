"""Models of a bulletin board, and one with every type of field."""

import uuid
from typing import Any

from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Topic(models.Model):
    comment = models.CharField(max_length=2000)
    author = models.ForeignKey(Author, models.CASCADE, null=True)
    tags = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.comment


class LoudTopic(Topic):
    """A proxy, with what instances have and columns do not."""

    class Meta:
        proxy = True

    @property
    def shout(self) -> str:
        return self.comment.upper()

    @property
    def siblings(self) -> models.QuerySet[Topic]:
        return Topic.objects.filter(author=self.author)


class Seat(models.Model):
    """Its key is two columns."""

    pk = models.CompositePrimaryKey("row", "number")
    row = models.IntegerField()
    number = models.IntegerField()
    guest = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.guest


class WordsField(models.CharField):
    """A project's own field: text in the database, a list in Python."""

    def from_db_value(self, value: str | None, expression: object, connection: object) -> list[str] | None:
        return None if value is None else value.split()

    def get_prep_value(self, value: list[str] | None) -> str | None:
        return None if value is None else " ".join(value)


class Poem(models.Model):
    words = WordsField(max_length=200)

    def __str__(self) -> str:
        return " ".join(self.words)


class Code:
    """What a project makes of its numbers."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and other.number == self.number

    def __hash__(self) -> int:
        return hash((Code, self.number))

    def __str__(self) -> str:
        return f"c{self.number}"


class CodeField(models.IntegerField):
    """A project's own field for keys: numbers in the database, objects in Python."""

    def from_db_value(self, value: int | None, *rest: Any) -> Code | None:
        return None if value is None else Code(value)

    def to_python(self, value: Any) -> Any:
        return value if isinstance(value, Code) or value is None else Code(int(value))

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else self.to_python(value).number


class Account(models.Model):
    login = models.CharField(max_length=100)
    password = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.login


class Everything(models.Model):
    """A column of each type that every database has."""

    key = models.UUIDField(primary_key=True, default=uuid.uuid4)
    big = models.BigIntegerField(null=True)
    binary = models.BinaryField(null=True)
    boolean = models.BooleanField(null=True)
    char = models.CharField(max_length=200, null=True)
    date = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    decimal = models.DecimalField(max_digits=20, decimal_places=6, null=True)
    duration = models.DurationField(null=True)
    file = models.FileField(null=True)
    floating = models.FloatField(null=True)
    integer = models.IntegerField(null=True)
    ip = models.GenericIPAddressField(null=True)
    json = models.JSONField(null=True)
    slug = models.SlugField(null=True)
    small = models.SmallIntegerField(null=True)
    text = models.TextField(null=True)
    time = models.TimeField(null=True)
    unique = models.UUIDField(null=True)
    doubled = models.GeneratedField(
        expression=models.F("integer") * 2, output_field=models.BigIntegerField(), db_persist=True
    )

    def __str__(self) -> str:
        return str(self.key)


class Writer(models.Model):
    """Has an order of its own, by which relations to it sort."""

    name = models.CharField(max_length=100)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Desk(models.Model):
    """Its key is a relation."""

    writer = models.OneToOneField(Writer, models.CASCADE, primary_key=True)
    number = models.IntegerField(null=True)

    def __str__(self) -> str:
        return str(self.number)


class Entry(models.Model):
    """A column of each type that a list is sorted by."""

    id = models.BigIntegerField(primary_key=True)
    number = models.IntegerField(null=True)
    moment = models.DateTimeField(null=True)
    ratio = models.FloatField(null=True)
    price = models.DecimalField(max_digits=12, decimal_places=3, null=True)
    flag = models.BooleanField(null=True)
    day = models.DateField(null=True)
    word = models.CharField(max_length=100, null=True)
    token = models.UUIDField(null=True)
    shown = models.BooleanField(default=True)
    writer = models.ForeignKey(Writer, models.CASCADE, null=True)

    class Meta:
        ordering = ("-number",)

    def __str__(self) -> str:
        return str(self.word)


class Page(models.Model):
    """Its key is a text, and it can be found by columns of which no two rows have the same value."""

    slug = models.CharField(max_length=100, primary_key=True)
    address = models.CharField(max_length=100, unique=True)
    number = models.IntegerField(unique=True, null=True)
    token = models.UUIDField(unique=True, null=True)
    title = models.CharField(max_length=100, default="")
    shown = models.BooleanField(default=True)

    def __str__(self) -> str:
        return self.title
