"""What django-modeltranslation makes of them."""

from modeltranslation.translator import TranslationOptions, register

from .models import News


@register(News)
class NewsOptions(TranslationOptions):
    fields = ("title",)
