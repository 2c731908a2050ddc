"""MLflow answers a search in pages, each with a token for the next one."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mlflow.store.entities import PagedList

T = TypeVar("T")


def find_all(search: "Callable[..., PagedList[T]]") -> Iterator[T]:
    """Yield what a search finds; a page is asked for once the one before is used up."""
    page = search()
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page
