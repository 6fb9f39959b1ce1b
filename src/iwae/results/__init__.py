"""Measuring the models of a run: records, with the per-example values beside them.

A record says what was measured, on which examples, by which model, how, and how sure the number
is; tables are made from records alone.
"""
