from django.contrib import admin

from bbs.models import Topic


# Django's generic classes take no parameter at run time.
@admin.register(Topic)
class TopicAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("id", "comment", "created_at")
    list_display_links = ("id", "comment")
    readonly_fields = ("created_at",)
    search_fields = ("comment",)
