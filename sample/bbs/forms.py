from typing import ClassVar

from django import forms

from bbs.models import Topic


# Django's generic classes take no parameter at run time.
class TopicForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Topic
        fields = ("comment", "author")
        widgets: ClassVar[dict[str, forms.Widget]] = {"comment": forms.Textarea(attrs={"rows": 3})}

    def clean_comment(self) -> str:
        """End lines as programs do: browsers send two characters, and an edit would change every line."""
        return "\n".join(self.cleaned_data["comment"].splitlines())
