"""Its models: those whose package is installed."""

from importlib.util import find_spec
from typing import Any

from django.db import models

MADE: dict[str, type[Any]] = {}  # by the package


def installed(*packages: str) -> bool:
    return all(find_spec(package) is not None for package in packages)


if installed("modeltranslation"):

    class News(models.Model):
        title = models.CharField(max_length=50)
        day = models.DateField(null=True)

        def __str__(self) -> str:
            return self.title

    MADE["modeltranslation"] = News


if installed("polymorphic"):
    from polymorphic.models import PolymorphicModel

    class Content(PolymorphicModel):
        title = models.CharField(max_length=50)

        def __str__(self) -> str:
            return self.title

    class Movie(Content):
        length = models.IntegerField(default=0)

    MADE["polymorphic"] = Content


if installed("safedelete"):
    from safedelete.config import DELETED_VISIBLE_BY_PK, SOFT_DELETE
    from safedelete.managers import SafeDeleteManager
    from safedelete.models import SafeDeleteModel

    class VisibleByKey(SafeDeleteManager):
        _safedelete_visibility = DELETED_VISIBLE_BY_PK

    class Order(SafeDeleteModel):
        _safedelete_policy = SOFT_DELETE
        title = models.CharField(max_length=50)
        objects = VisibleByKey()

        def __str__(self) -> str:
            return self.title

    MADE["safedelete"] = Order


if installed("djmoney", "phonenumber_field"):
    from djmoney.models.fields import MoneyField
    from phonenumber_field.modelfields import PhoneNumberField

    class Contact(models.Model):
        title = models.CharField(max_length=50)
        phone = PhoneNumberField(default="+4930123456")
        cost = MoneyField(max_digits=10, decimal_places=2, default_currency="EUR", default=5)
        photo = models.FileField(upload_to="x", default="a.png")

        def __str__(self) -> str:
            return self.title

    MADE["djmoney"] = Contact


if installed("parler"):
    from parler.models import TranslatableModel, TranslatedFields

    class Article(TranslatableModel):
        title = models.CharField(max_length=50)
        translations = TranslatedFields(body=models.CharField(max_length=50, default=""))

        def __str__(self) -> str:
            return self.title

    MADE["parler"] = Article


if installed("mptt"):
    from mptt.models import MPTTModel, TreeForeignKey

    class Category(MPTTModel):
        title = models.CharField(max_length=50)
        parent = TreeForeignKey("self", models.CASCADE, null=True, related_name="children")

        def __str__(self) -> str:
            return self.title

    MADE["mptt"] = Category


if installed("treebeard"):
    from treebeard.mp_tree import MP_Node

    class Leaf(MP_Node):
        title = models.CharField(max_length=50)

        def __str__(self) -> str:
            return self.title

    MADE["treebeard"] = Leaf


if installed("taggit"):
    from taggit.managers import TaggableManager

    class Tagged(models.Model):
        title = models.CharField(max_length=50)
        tags = TaggableManager()

        def __str__(self) -> str:
            return self.title

    MADE["taggit"] = Tagged
