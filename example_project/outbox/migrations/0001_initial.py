from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("message_id", models.CharField(db_index=True, max_length=255)),
                ("event_id", models.CharField(max_length=255, unique=True)),
                ("timestamp", models.DateTimeField()),
                ("event_type", models.CharField(max_length=30)),
                ("recipient", models.TextField(blank=True)),
                ("detail", models.TextField(blank=True)),
            ],
            options={
                "ordering": ("timestamp", "pk"),
            },
        ),
        migrations.CreateModel(
            name="Mail",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "message_id",
                    models.CharField(blank=True, db_index=True, max_length=255),
                ),
                ("subject", models.TextField(blank=True)),
                ("from_email", models.TextField(blank=True)),
                ("to", models.TextField(blank=True)),
                ("route", models.CharField(blank=True, max_length=255)),
                ("tag", models.CharField(blank=True, max_length=255)),
                ("metadata", models.JSONField(default=dict)),
                ("idempotency_key", models.CharField(blank=True, max_length=255)),
                ("outcome", models.CharField(max_length=10)),
                ("phase", models.CharField(max_length=20)),
                ("error", models.TextField(blank=True)),
                ("reply", models.TextField(blank=True)),
                ("recipients", models.JSONField(default=dict)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("elapsed", models.FloatField(default=0, help_text="seconds")),
                ("connection_reused", models.BooleanField(default=False)),
            ],
            options={
                "ordering": ("-pk",),
            },
        ),
    ]
