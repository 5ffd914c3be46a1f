"""A site of django-cms's own apps."""

from .common import *

INSTALLED_APPS = ["django.contrib.sites", "cms", "menus", "treebeard", "sekizai", *DJANGO_APPS]
SITE_ID = 1
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "German")]
CMS_CONFIRM_VERSION4 = True
CMS_TEMPLATES = [("page.html", "A page")]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "context_processors": [
                "django.contrib.auth.context_processors.auth",
                "django.template.context_processors.request",
                "sekizai.context_processors.sekizai",
            ]
        },
    }
]
