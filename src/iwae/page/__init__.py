"""The report page: runs compared on one HTML page that needs no other file and no network."""

from iwae.page.write import write_page

__all__ = ["write_page"]
