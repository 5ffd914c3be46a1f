"""Rows that give a torn or uncommitted one away.

Each carries a seal, a digest of its own columns, so that a mixture of two versions is seen. Items and shelves
with low keys are never deleted by what is committed. Accounts only pass amounts on, so that their sum is
always the same.
"""

from django.db import models

# Where the database can do it by itself (Django 6.1), it deletes rows that no signal tells of.
CASCADE = getattr(models, "DB_CASCADE", models.CASCADE)


class Shelf(models.Model):
    id = models.BigIntegerField(primary_key=True)
    name = models.CharField(max_length=60)
    seal = models.CharField(max_length=32)


class Item(models.Model):
    id = models.BigIntegerField(primary_key=True)
    number = models.IntegerField()
    title = models.CharField(max_length=60)
    is_open = models.BooleanField()
    shelf = models.ForeignKey(Shelf, CASCADE)
    seal = models.CharField(max_length=32)


class Account(models.Model):
    id = models.BigIntegerField(primary_key=True)
    balance = models.IntegerField()
    seal = models.CharField(max_length=32)
