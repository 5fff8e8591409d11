"""How Sphinx builds these pages: `tox run -e docs`."""

from __future__ import annotations

from django.conf import settings

import django_lettermint

# For the reference, which imports the package.
settings.configure()

project = "django-lettermint-smtp"
author = "django_lettermint contributors"
copyright = author
version = release = django_lettermint.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
# For contributors, who read it in the repository.
exclude_patterns = ["names.md"]

# Links to headings are written as GitHub makes them, so pages work there as well.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
# Docstrings write code between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
