"""Gives the application the label that peers name their model by."""

from django.apps import AppConfig


class BbsConfig(AppConfig):
    """`bbs.Topic` is the model of all measurements."""

    name = "benchmarks.project.bbs"
    label = "bbs"
