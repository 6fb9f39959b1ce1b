"""Records into the tables of this repository's pages: `python docs/tools/tables.py` fills them in.

A results folder holds one folder per run (configuration, models, metrics, records). A Markdown
file has blocks `<!-- results:NAME -->` ... `<!-- /results:NAME -->`; no number in them is typed.
"""
