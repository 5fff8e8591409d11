"""A page of Wagtail with a form that is mailed, as in Wagtail's documentation."""

from __future__ import annotations

from modelcluster.fields import ParentalKey
from wagtail.contrib.forms.models import AbstractEmailForm, AbstractFormField


class FormField(AbstractFormField):  # type: ignore[misc]
    """A field of the form."""

    page = ParentalKey("FormPage", related_name="form_fields")


class FormPage(AbstractEmailForm):  # type: ignore[misc]
    """The form."""

    template = "form.html"
    landing_page_template = "form.html"
