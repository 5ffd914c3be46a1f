"""What a full load takes over from the table before it: most of it, where little has changed.

That saves memory, since both tables are there until the new one is served, and the work of making something
of a page again.
"""

from collections.abc import Hashable, Sequence
from uuid import UUID

from .key_index import ABSENT, Absent, KeyIndex
from .pages import Page
from .table import Table

FEW = 1 / 32  # of the pages: an index is changed by their keys in one step, and made anew in many

# Keys of these types that are equal are the same; 1.0 and 1.00 would begin other pages.
_WRITTEN_ONE_WAY = frozenset({int, str, UUID})


def known_page(page: Page, known: Table | None) -> Page:
    """The page that is there already, if it is the same; else this one, with the keys that are there already.

    Args:
        page: what was read; it is in no table yet.
        known: the table before, if there is one.
    """
    old = None if known is None else known.page(page.start)
    # The keys are looked at as well as the JSON, since they need not be among the fields.
    if old is None or old.keys != page.keys:
        return page
    if old.objects is None and page.objects is None and old.digest == page.digest:
        return old
    if _WRITTEN_ONE_WAY.issuperset(map(type, old.keys)):
        page.keys = old.keys
    return page


def known_index(pages: Sequence[Page], known: Table) -> KeyIndex[Hashable] | None:
    """Where each key is, made of the index before; None if that would be wrong, or too much at once.

    Args:
        pages: all of them, each from ``known_page()``.
        known: the table before.
    """
    if known.where is None or not known.has_unique_keys:
        return None
    new = [page for page in pages if not _has_keys_of(page, known)]
    # A join that has begun to double a row may have made two pages of one start.
    one_each = len({page.start for page in pages}) == len(pages)
    if not one_each or len(new) > len(pages) * FEW:
        return None
    kept = {page.start for page in pages} - {page.start for page in new}
    gone = (key for page in known.pages if page.start not in kept for key in page.keys)
    moves: dict[Hashable, Hashable | Absent] = dict.fromkeys(gone, ABSENT)
    moves |= {key: page.start for page in new for key in page.keys}
    where = known.where.changed(moves) if moves else known.where
    # Of a key that two rows have now, the last page counts, as in an index of all pages.
    return where if len(where) == sum(map(len, pages)) and where.fits else None


def _has_keys_of(page: Page, known: Table) -> bool:
    old = known.page(page.start)
    return old is not None and old.keys is page.keys
