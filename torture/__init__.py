"""Attacks on autoencode: hostile files, kills, full disks, concurrent runs, forged files, degenerate images.

`python -m torture` runs every part and prints a table; `python -m torture PART --cases N --seed S` runs one.
The quick part of each is in tests/torture.
"""
