"""Django's settings for writers and workers alike; the environment says where the rows are."""

import os
from typing import Any

import dj_database_url
import pymysql

pymysql.install_as_MySQLdb()

SECRET_KEY = "for tests only"
DEBUG = False
USE_TZ = True
INSTALLED_APPS = ["tests.soak.project.stock", "fastapi_django_orm.django"]
DATABASES: dict[str, Any] = {
    "default": dj_database_url.parse(os.environ["SOAK_DATABASE_URL"], conn_max_age=None)
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
if os.environ.get("SOAK_POOL"):
    DATABASES["default"] |= {"OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}, "CONN_MAX_AGE": 0}
