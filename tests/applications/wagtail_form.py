"""Wagtail: a form that a visitor submits is mailed."""

from __future__ import annotations

from tests.applications import project

project.start(
    *("wagtail.contrib.forms", "wagtail.sites", "wagtail.users", "wagtail.documents"),
    *("wagtail.images", "wagtail.search", "wagtail.admin", "wagtail"),
    *("modelcluster", "taggit", "tests.applications.forms"),
    STATIC_URL="static/",
    WAGTAIL_SITE_NAME="Shop",
    WAGTAILADMIN_BASE_URL="http://shop.example",
)

from django.test import Client
from django.urls import include, path
from wagtail import urls
from wagtail.models import Locale, Page, Site

from tests.applications.forms.models import FormField, FormPage

urlpatterns = [path("", include(urls))]

if __name__ == "__main__":
    Locale.objects.create(language_code="en")
    root = Page.add_root(title="Root", slug="root")
    form = FormPage(
        title="Contact",
        slug="contact",
        to_address="ada@example.com",
        from_address="shop@example.com",
        subject="A question",
    )
    root.add_child(instance=form)
    Site.objects.create(hostname="localhost", root_page=root, is_default_site=True)
    FormField.objects.create(page=form, label="Your question", field_type="singleline")

    answer = Client().post("/contact/", {"your_question": "When?"})
    assert answer.status_code == 200, answer.content
