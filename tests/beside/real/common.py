"""What the settings of all real projects share."""

import os

import dj_database_url

SECRET_KEY = "for tests only"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DATABASES = {"default": dj_database_url.parse(os.environ["REAL_DATABASE"], conn_max_age=None)}
INSTALLED_FOR_COHERENCE = ["fastapi_django_orm.django"]
DJANGO_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    *INSTALLED_FOR_COHERENCE,
]
STATIC_URL = "/static/"
MIDDLEWARE: list[str] = []
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
