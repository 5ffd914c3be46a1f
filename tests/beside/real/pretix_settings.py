"""Pretix as its own tests configure it."""

from pretix.testutils.settings import *

from .common import DATABASES as DATABASES
from .common import INSTALLED_FOR_COHERENCE

INSTALLED_APPS = [*INSTALLED_APPS, *INSTALLED_FOR_COHERENCE]
DATABASE_REPLICA = "default"
