"""The Django app. It has no models, so it needs no migration."""

from django.apps import AppConfig


class CoherenceConfig(AppConfig):
    """Notifies FastAPI's workers of what this process writes."""

    name = "fastapi_django_orm.django"
    label = "fastapi_django_orm"
    verbose_name = "FastAPI coherence"

    def ready(self) -> None:
        """Connect the signals and register the system checks."""
        from . import checks, signals

        checks.register()
        signals.connect()
