from django.db import models


class Topic(models.Model):
    """What somebody wrote on the board."""

    comment = models.CharField(max_length=2000)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.comment
