"""Django's settings for every peer; what differs between peers comes from the environment.

The differences are the ones each peer's documentation asks for (`catalog.py` sets them): persistent
connections under WSGI, a psycopg pool under ASGI.
"""

import os

import dj_database_url

SECRET_KEY = "only measures"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["benchmarks.project.bbs"]
if app := os.environ.get("BENCHMARK_APP"):
    INSTALLED_APPS.append(app)
ROOT_URLCONF = os.environ.get("BENCHMARK_URLCONF", "benchmarks.project.settings")
MIDDLEWARE: list[str] = []
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
urlpatterns: list[object] = []

DATABASES = {
    "default": dj_database_url.parse(
        os.environ["DATABASE_URL"],
        conn_max_age=int(os.environ.get("BENCHMARK_CONN_MAX_AGE", "0")),
    )
}
if pool := int(os.environ.get("BENCHMARK_POOL", "0")):
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 2, "max_size": pool}}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # https://docs.djangoproject.com/en/stable/ref/databases/#setting-pragma-options
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
    }

CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

# Django REST framework without its login machinery, and django-bolt's own way to find an API.
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}
if bolt := os.environ.get("BENCHMARK_BOLT_API"):
    INSTALLED_APPS.append("django_bolt")
    # Its server logs each request here, as `runserver` does; the others run without an access log.
    LOGGING = {"version": 1, "loggers": {"django.server": {"level": "CRITICAL", "propagate": False}}}
    BOLT_API = [bolt]
