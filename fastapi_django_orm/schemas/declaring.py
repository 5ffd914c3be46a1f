"""The models that a declaration names: declaring a schema or a filter sets Django up."""

from django.apps import apps
from django.conf import settings
from django.db.models import Model

from ..errors import ModelsNotReady, UnknownModel, nearest
from ..setup import set_up_django


def model_named(label: str | type[Model], owner: str) -> type[Model]:
    """Set Django up as ``DjangoORM.setup()`` does, and return the model that a class names.

    Args:
        label: ``"bbs.Topic"``, or the model class itself.
        owner: what declares it, for messages: ``"TopicOut"``.

    Raises:
        ModelsNotReady: Django is importing the models now, and they or the settings import ``owner``.
        UnknownModel: no installed app has the model; the message has the nearest labels.
        ConfigurationError: Django cannot be set up.
    """
    if not apps.models_ready:
        set_up_django()
    if not apps.models_ready:
        # set_up_django() was called inside of Django's own setup, which must end first.
        raise ModelsNotReady(
            f"{owner} names the model {label!r}, and Django has not imported all models yet: the settings, "
            f"an app or a module of models imports the module of {owner}. Put {owner} into a module that "
            "none of them imports, such as schemas.py beside main.py, or import it inside a function."
        )
    if isinstance(label, str):
        return labelled(label, f"{owner}: there")
    options = getattr(label, "_meta", None)
    if options is None or options.abstract:
        raise UnknownModel(f"{owner}: {label!r} is neither a model's label nor a model with a table.")
    return label


def labelled(label: str, there: str) -> type[Model]:
    """Return the model with this label; ``there`` begins the message.

    Raises:
        UnknownModel: no installed app has one; the message has the nearest labels.
    """
    try:
        return apps.get_model(label)  # to which the case of the model's name makes no difference
    except (LookupError, ValueError):
        labels = [model._meta.label for model in apps.get_models(include_auto_created=True)]
        raise UnknownModel(
            f"{there} is no model {label!r} in INSTALLED_APPS. {_app_missing(label)}"
            + (nearest(label, labels) if labels else _no_models())
        ) from None


def _no_models() -> str:
    return f"No app there has a model. The settings module is {settings.SETTINGS_MODULE!r}."


def _app_missing(label: str) -> str:
    app, _, model = label.partition(".")
    is_label = app and model and "." not in model
    installed = {config.label.casefold() for config in apps.get_app_configs()}
    return f"Is {app!r} in INSTALLED_APPS? " if is_label and app.casefold() not in installed else ""
