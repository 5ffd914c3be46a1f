"""`GET /topics` (100 rows) and `GET /topics/{pk}`, while the same process reads 100,000 rows over and over.

`GET /busy` begins with that and `GET /idle` ends it; both tell how many refreshes there have been. Before
each, some of the rows are changed, as there would be no reason to refresh otherwise.
"""
