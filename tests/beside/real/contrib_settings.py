"""Everything of django.contrib that has models and runs on any database."""

from .common import *

INSTALLED_APPS = [
    "django.contrib.sites",
    "django.contrib.flatpages",
    "django.contrib.redirects",
    *DJANGO_APPS,
]
SITE_ID = 1
