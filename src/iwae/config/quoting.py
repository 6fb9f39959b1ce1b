"""Names in options: quoted where they hold separators."""


def unquoted(word: str) -> str:
    """A word without its quotes; those inside are doubled, as in a .csv file."""
    is_quoted = len(word) > 1 and word[0] == word[-1] == '"'
    return word[1:-1].replace('""', '"') if is_quoted else word


def quoted_name(name: str) -> str:
    """The inverse of `unquoted`: a name, in quotes if it has an equals sign or a quote."""
    return '"' + name.replace('"', '""') + '"' if {"=", '"'} & {*name} else name
