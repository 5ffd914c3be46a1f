"""Models that refuse what is wrong: constraints of every kind, code of their own, files, relations."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Lower


class Shelf(models.Model):
    name = models.CharField(max_length=20, unique=True)
    inside = models.ForeignKey("self", models.CASCADE, null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Subject(models.Model):
    word = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.word


class Book(models.Model):
    title = models.CharField(max_length=50)
    shelf = models.ForeignKey(Shelf, models.PROTECT, null=True)
    place = models.IntegerField(null=True)
    first = models.IntegerField(default=1)
    last = models.IntegerField(default=1)
    language = models.CharField(max_length=2, default="en", choices=[("en", "English"), ("ja", "Japanese")])
    subjects = models.ManyToManyField(Subject, blank=True)
    cover = models.FileField(upload_to="covers", blank=True)
    shown = models.BooleanField(default=True)
    notes = models.JSONField(default=list)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["shelf", "place"], name="library_one_place"),
            models.UniqueConstraint(Lower("title"), name="library_one_title"),
            models.CheckConstraint(condition=models.Q(last__gte=models.F("first")), name="library_range"),
        )

    def __str__(self) -> str:
        return self.title

    def clean(self) -> None:
        if self.title == "forbidden":
            raise ValidationError("This title is forbidden.")

    def save(self, *args: Any, **options: Any) -> None:
        self.title = self.title.strip()
        super().save(*args, **options)

    @property
    def pages(self) -> int:
        return self.last - self.first + 1

    @pages.setter
    def pages(self, number: int) -> None:
        self.last = self.first + number - 1


class Novel(Book):
    """Its row is in two tables."""

    hero = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.hero
