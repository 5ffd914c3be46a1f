"""Where schemas are declared: declaring one sets Django up, wherever that is possible."""

from tests.support.projects import Project

MAIN = """
from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM, ModelSchema


class TopicOut(ModelSchema, model="bbs.Topic", fields=("id", "comment")): ...


class Topics(CachedRepository[TopicOut]):
    model = "bbs.Topic"
    schema = TopicOut
    publish = "/topics/"


app = FastAPI(lifespan=DjangoORM.lifespan)


@app.post("/")
async def post(topic: TopicOut) -> TopicOut:
    return topic
"""

SCHEMA = """
from fastapi_django_orm import ModelSchema


class TopicOut(ModelSchema, model="bbs.Topic", fields=("id", "comment")): ...
"""

IMPORTING = "from bbs.schemas import TopicOut\n"


def test_uvicorn_imports_an_application_with_schemas(project: Project) -> None:
    """The event loop runs while the application is imported, and Django is set up by the first schema."""
    project.write("main.py", MAIN)
    with project.uvicorn() as server:
        assert server.get("/topics/").json() == {"topics": [{"id": 1, "comment": "first"}]}
        assert server.post("/", json={"id": 3, "comment": "a"}).json() == {"id": 3, "comment": "a"}
        assert server.post("/", json={"id": 3, "comment": ""}).status_code == 422


def test_a_schema_in_a_module_that_models_import_says_where_to_put_it(project: Project) -> None:
    """Django imports the models at this moment, and cannot say yet which there are."""
    project.write("main.py", MAIN)
    project.write("bbs/schemas.py", SCHEMA)
    project.append("bbs/models.py", IMPORTING)
    code, output = project.run("-c", "import main")
    assert code == 1
    assert "TopicOut names the model 'bbs.Topic', and Django has not imported all models yet" in output
    assert "Put TopicOut into a module that none of them imports" in output


def test_a_schema_in_the_settings_modules_import_says_so_too(project: Project) -> None:
    """The settings must be there before a model can be."""
    project.write("schemas.py", SCHEMA)
    project.append("config/settings.py", "import schemas\n")
    code, output = project.run(
        "-c", "import django; django.setup()", DJANGO_SETTINGS_MODULE="config.settings"
    )
    assert code == 1
    assert "Put TopicOut into a module that none of them imports" in output


def test_schemas_may_be_declared_once_models_are_there(project: Project) -> None:
    """`AppConfig.ready()` runs when all models have been imported."""
    project.write("bbs/schemas.py", SCHEMA)
    project.write(
        "bbs/apps.py",
        """
        from django.apps import AppConfig


        class Board(AppConfig):
            name = "bbs"

            def ready(self):
                from bbs.schemas import TopicOut

                print(*TopicOut.model_fields)
        """,
    )
    assert project.python("import main").split() == []
    project.write("main.py", MAIN)
    assert "id comment" in project.python("import main")


def test_an_unknown_model_ends_the_import(project: Project) -> None:
    """The nearest label is in the message."""
    project.write("main.py", MAIN.replace('"bbs.Topic"', '"bbs.Topik"'))
    code, output = project.run("-c", "import main")
    assert code == 1
    assert "TopicOut: there is no model 'bbs.Topik' in INSTALLED_APPS. Did you mean 'bbs.Topic'?" in output
