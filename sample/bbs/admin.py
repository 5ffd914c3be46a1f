from django.contrib import admin

from bbs.forms import TopicForm
from bbs.models import Author, Topic


# Django's generic classes take no parameter at run time.
@admin.register(Author)
class AuthorAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    search_fields = ("name",)


@admin.register(Topic)
class TopicAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = TopicForm  # several lines: the admin's own field for a CharField has one, and would join them
    list_display = ("id", "comment", "author", "created_at")
    list_select_related = ("author",)
    list_display_links = ("id", "comment")
    readonly_fields = ("created_at",)
    search_fields = ("comment", "author__name")
