"""django-allauth: a new user gets a mail to confirm the address."""

from __future__ import annotations

from tests.applications import project

project.start(
    *("allauth", "allauth.account"),
    MIDDLEWARE=["allauth.account.middleware.AccountMiddleware"],
    ACCOUNT_EMAIL_VERIFICATION="mandatory",
    ACCOUNT_SIGNUP_FIELDS=["email*", "username*", "password1*"],
    ACCOUNT_RATE_LIMITS=False,
)

from django.contrib.sites.models import Site
from django.test import Client
from django.urls import include, path

urlpatterns = [path("accounts/", include("allauth.urls"))]

if __name__ == "__main__":
    Site.objects.create(domain="shop.example", name="Shop")
    form = {"email": "ada@example.com", "username": "ada", "password1": "sesame-1f0a"}
    answer = Client().post("/accounts/signup/", form)
    assert answer.status_code == 302, answer.content
