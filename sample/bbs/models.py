from django.db import models


class Author(models.Model):
    """Somebody who writes on the board."""

    name = models.CharField(max_length=80, unique=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Topic(models.Model):
    """What somebody wrote on the board."""

    comment = models.CharField(max_length=2000)
    author = models.ForeignKey(Author, models.SET_NULL, null=True, blank=True, related_name="topics")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.comment
