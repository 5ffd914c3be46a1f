"""The Django side: what a project gets with ``INSTALLED_APPS += ["fastapi_django_orm.django"]``."""
