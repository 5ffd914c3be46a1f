"""A shop of django-oscar's own apps."""

from oscar import INSTALLED_APPS as OSCAR_APPS
from oscar.defaults import *

from .common import *

INSTALLED_APPS = [*dict.fromkeys([*OSCAR_APPS, *DJANGO_APPS])]
SITE_ID = 1
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
