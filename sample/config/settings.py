"""Settings of the sample project; whatever differs between machines comes from the environment.

https://docs.djangoproject.com/en/stable/ref/settings/
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

# Anything but a clear yes turns it off: a typo must not publish tracebacks.
DEBUG = os.environ.get("DEBUG", "on").lower() in {"1", "on", "true", "yes"}

SECRET_KEY = os.environ.get("SECRET_KEY", "django-insecure-sample-only" if DEBUG else "")
if not SECRET_KEY:
    # Django itself would complain only when the key is first used.
    raise ImproperlyConfigured("Set SECRET_KEY: it has a default only while DEBUG is on.")

# Empty means localhost while DEBUG is on, and nobody otherwise.
ALLOWED_HOSTS = [host for host in os.environ.get("ALLOWED_HOSTS", "").split(",") if host]

INSTALLED_APPS = [
    "bbs",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "fastapi_django_orm.django",  # tells FastAPI of what Django writes; `manage.py coherence`
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

database: dj_database_url.DBConfig
if url := os.environ.get("DATABASE_URL"):
    # Opening a connection costs more than most queries; the check is for Django's own, outside of FastAPI.
    database = dj_database_url.parse(url, conn_max_age=600, conn_health_checks=True)
else:
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(BASE_DIR / "db.sqlite3"),
        "CONN_MAX_AGE": None,  # a file does not hang up
    }

match database["ENGINE"]:
    case "django.db.backends.sqlite3":
        # Readers and a writer at once, and writers that queue instead of failing:
        # https://docs.djangoproject.com/en/stable/ref/databases/#sqlite-notes
        database["OPTIONS"] = {
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
            "timeout": 10,  # seconds
            "transaction_mode": "IMMEDIATE",
            **database.get("OPTIONS", {}),
        }
    case "django.db.backends.mysql":
        # PyMySQL needs no compiler; where it is installed and mysqlclient is not, it stands in for it.
        if find_spec("MySQLdb") is None and find_spec("pymysql") is not None:
            import_module("pymysql").install_as_MySQLdb()
        # "utf8" there means three bytes a character: no emoji, and some kanji are missing.
        database.setdefault("OPTIONS", {})["charset"] = "utf8mb4"
        database["TEST"] = {"CHARSET": "utf8mb4"}

DATABASES = {"default": database}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("ja", "日本語")]
TIME_ZONE = "Asia/Tokyo"
USE_TZ = True

STATIC_URL = "static/"
