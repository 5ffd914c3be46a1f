"""What Django serves; the paths of FastAPI are in main.py."""

from django.contrib import admin
from django.urls import path

from bbs.views import board

urlpatterns = [
    path("board/", board, name="board"),
    path("admin/", admin.site.urls),
]
