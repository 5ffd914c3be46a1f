from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from bbs.forms import TopicForm
from bbs.models import Topic

SHOWN = 100


@require_http_methods(["GET", "HEAD", "POST"])
def board(request: HttpRequest) -> HttpResponse:
    """The newest topics, and the form that adds one."""
    form = TopicForm(request.POST if request.method == "POST" else None)
    if form.is_valid():
        form.save()
        return redirect("board")
    return render(
        request, "bbs/board.html", {"form": form, "topics": Topic.objects.select_related("author")[:SHOWN]}
    )
