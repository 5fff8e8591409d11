from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, freeze


def check(**extras: Any) -> None:
    """Validate route, tag, metadata or key by the package's rules."""
    try:
        freeze(LettermintMessage(**extras))
    except LettermintInvalidMessage as error:
        raise ValidationError(str(error)) from error


class ComposeForm(forms.Form):
    """A mail without its metadata."""

    to = forms.CharField(
        initial="ok@testing.lettermint.co",
        help_text="One address, or several separated by commas.",
        widget=forms.TextInput(attrs={"list": "addresses", "autocomplete": "off"}),
    )
    subject = forms.CharField(initial="Hello from the example")
    text = forms.CharField(
        initial="It works.", widget=forms.Textarea(attrs={"rows": 4})
    )
    html = forms.CharField(
        label="HTML",
        required=False,
        help_text="Optional: the same content for mail programs that show HTML.",
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false"}),
    )
    attachment = forms.FileField(required=False)
    tenant = forms.ChoiceField(
        required=False,
        choices=[("", "none"), ("north", "North"), ("south", "South")],
        help_text="The project and token to send with.",
    )
    route = forms.CharField(
        required=False,
        validators=[lambda value: check(route=value)],
        help_text="A route of the project.",
    )
    tag = forms.CharField(
        required=False,
        validators=[lambda value: check(tag=value)],
        help_text="One label, for statistics.",
    )
    idempotency_key = forms.CharField(
        required=False,
        validators=[lambda value: check(idempotency_key=value)],
        help_text="Lettermint accepts a key once, and refuses another mail with it. "
        "If empty, one is generated.",
    )

    def message(self, metadata: dict[str, str]) -> LettermintMessage:
        """Return the mail."""
        data = self.cleaned_data
        names = ("tenant", "route", "tag", "idempotency_key")
        message = LettermintMessage(
            data["subject"],
            data["text"],
            to=[address.strip() for address in data["to"].split(",")],
            metadata=metadata,
            **{name: data[name] for name in names if data[name]},
        )
        if data["html"]:
            message.attach_alternative(data["html"], "text/html")
        if file := data["attachment"]:
            message.attach(file.name, file.read())  # its name tells the type
        return message

    def refuse(self, error: Exception) -> None:
        """Show an error about the whole mail at the field it names."""
        field = str(error).partition(":")[0]
        self.add_error(field if field in self.fields else None, str(error))


class MetadataForm(forms.Form):
    """One name and value."""

    key = forms.CharField(label="Name", required=False)
    value = forms.CharField(required=False)

    def clean(self) -> dict[str, Any]:
        key = self.cleaned_data.get("key", "")
        value = self.cleaned_data.get("value", "")
        if key or value:
            try:
                check(metadata={key: value})
            except ValidationError as error:
                at_key = error.message.startswith("metadata key")
                self.add_error("key" if at_key else "value", error)
        return self.cleaned_data


class MetadataRows(forms.BaseFormSet):  # type: ignore[type-arg]  # not at runtime
    """Refuses a name that occurs twice, since a mapping would lose one of the values."""

    def clean(self) -> None:
        names: set[str] = set()
        for form in self.forms:
            name = form.cleaned_data.get("key")
            if name in names:
                form.add_error("key", "Another row has this name.")
            elif name:
                names.add(name)


MetadataFormSet = forms.formset_factory(
    MetadataForm, formset=MetadataRows, extra=2, max_num=20
)


def metadata(rows: forms.BaseFormSet[MetadataForm]) -> dict[str, str]:
    """Return the rows as a mapping, without empty ones."""
    found = [form.cleaned_data for form in rows.forms]
    return {row["key"]: row["value"] for row in found if row.get("key")}
