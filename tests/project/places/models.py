"""Models whose tables are not what one expects."""

from django.contrib.contenttypes.fields import GenericForeignKey
from django.db import models

from tests.project.board.models import Author


class Tag(models.Model):
    word = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.word


class Place(models.Model):
    name = models.CharField(max_length=100)
    tags = models.ManyToManyField(Tag)

    def __str__(self) -> str:
        return self.name


class Restaurant(Place):
    """Its row is in two tables, under one key."""

    serves = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.serves


class Bar(Place):
    """Its row is in two tables, under two keys."""

    code = models.SlugField(primary_key=True)
    place = models.OneToOneField(Place, models.CASCADE, parent_link=True)

    def __str__(self) -> str:
        return self.code


class PlaceName(models.Model):
    """Another look at the table of places."""

    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = "places_place"

    def __str__(self) -> str:
        return self.name


class Remark(models.Model):
    """About a row of any table."""

    kind = models.ForeignKey("contenttypes.ContentType", models.CASCADE)
    number = models.BigIntegerField()
    subject = GenericForeignKey("kind", "number")

    class Meta:
        managed = False

    def __str__(self) -> str:
        return str(self.number)


class KnownGuests(models.Manager["Guest"]):
    """Reads another table as well."""

    def get_queryset(self) -> models.QuerySet["Guest"]:
        return (
            super().get_queryset().filter(models.Exists(Author.objects.filter(name=models.OuterRef("name"))))
        )


class Guest(models.Model):
    name = models.CharField(max_length=100)
    place = models.ForeignKey(Place, models.CASCADE)

    objects = KnownGuests()

    class Meta:
        managed = False
        db_table = "$guests!"

    def __str__(self) -> str:
        return self.name


# The tests of triggers create the following as they need them, since no migration makes them so.


class Odd(models.Model):
    """Its key is a long text, and its names need quotes."""

    key = models.CharField(max_length=2000, primary_key=True, db_column="Order")

    class Meta:
        managed = False
        db_table = "Select Me"

    def __str__(self) -> str:
        return self.key


class Piece(models.Model):
    """Its key's column is named as a variable of the triggers' function is."""

    number = models.IntegerField(primary_key=True, db_column="part")

    class Meta:
        managed = False

    def __str__(self) -> str:
        return str(self.number)


class Elsewhere(models.Model):
    """In a schema of its own."""

    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = '"Else where"."thing"'

    def __str__(self) -> str:
        return self.name


class Reading(models.Model):
    """In a partitioned table."""

    value = models.IntegerField()

    class Meta:
        managed = False

    def __str__(self) -> str:
        return str(self.value)


class Note(models.Model):
    """The database itself deletes it with its place."""

    place = models.ForeignKey(Place, models.DO_NOTHING)

    class Meta:
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


class Overview(models.Model):
    """A view."""

    name = models.CharField(max_length=100)

    class Meta:
        managed = False

    def __str__(self) -> str:
        return self.name
