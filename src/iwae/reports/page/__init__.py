"""The report page: runs compared on one HTML page that needs no other file and no network."""
